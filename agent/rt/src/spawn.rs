//! The one place that gives a future to tokio. It knows neither groups nor shares, so that both can start tasks.

use std::future::Future;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// What can be spawned. The `Send` is here and nowhere else.
pub trait Spawnable: Future + Send + 'static {}
impl<F: Future + Send + 'static> Spawnable for F {}

/// Runs a future on a runtime, by default on the current one.
#[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
pub(crate) fn spawn<F: Spawnable<Output: Send>>(on: Option<&Handle>, future: F) -> JoinHandle<F::Output> {
    match on {
        Some(runtime) => runtime.spawn(future),
        None => tokio::spawn(future),
    }
}
