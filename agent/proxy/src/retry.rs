//! Whether, and with which endpoints, a connection that was not made is tried again. Pure: time is an argument, and nothing
//! is dialled here.

mod budget;
mod cause;
mod ejection;
mod hints;
mod shared;
mod state;

pub(crate) use cause::Cause;
pub(crate) use hints::Learnt;
pub(crate) use shared::SharedRetryState;
pub(crate) use state::{Ejected, FailedAttempt, GiveUpReason, Hop, Protection, RetryState};
