//! Whether a failed connection attempt is retried, and which endpoints the retry avoids: causes, the retry budget,
//! outlier ejection and the state machine of one connection.
//!
//! Pure: time is an argument and nothing is dialled here. The loop that drives it is
//! [`crate::outbound::retry_loop`].

mod budget;
mod cause;
mod ejection;
mod parts;
mod shared;
mod state;

pub(crate) use cause::Cause;
pub(crate) use parts::{EjectionParts, RetryParts};
pub(crate) use shared::SharedRetryState;
pub(crate) use state::{FailedAttempt, GiveUpReason, Hop, Protection, RetryState};
