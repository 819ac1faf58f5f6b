//! Connections of the pod, captured on 15001: from the original destination to an upstream. Never falls back from HBONE
//! to plaintext, and sends no byte of the application before the upstream accepted.
//!
//! `connect` chooses and connects, driven by `retry_loop`; `attempt` is one attempt; `carry` copies until the end.

mod attempt;
mod carry;
mod connect;
mod flow;
pub(crate) mod retry_loop;

pub(crate) use carry::{forward, resume, resume_plain, serve};
pub(crate) use flow::Flow;
