//! Connections of the pod, captured on 15001: from the original destination to an upstream. Never falls back from HBONE
//! to plaintext, and sends no byte of the application before the upstream accepted.

mod attempt;
mod carry;
mod connect;
mod flow;

pub(crate) use carry::{forward, serve};
pub(crate) use flow::Flow;
