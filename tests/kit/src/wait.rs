//! Bounded waits for conditions that nothing signals, such as a counter of the agent or a listener that goes away.
//!
//! This is the only place in the tests that polls. It parks a helper thread between two looks instead of sleeping on
//! the runtime's timer, so it costs no CPU while it waits and works under a paused clock too: the pending helper keeps
//! tokio from advancing that clock. Prefer a signal (a channel, a socket, a `watch`) wherever the code offers one.

use std::time::{Duration, Instant};

use anyhow::Context as _;

/// Longest wait for a condition, in real time. Far longer than anything on one machine takes, so that only a condition
/// that never comes to hold runs into it.
pub const LIMIT: Duration = Duration::from_secs(30);

/// First and longest pause between two evaluations of a condition; it doubles from one to the other.
const PAUSES: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(32)];

/// Waits until `holds` returns true.
///
/// # Panics
/// When it still does not after [`LIMIT`], with the text of `failure`.
pub async fn eventually(mut holds: impl FnMut() -> bool, failure: impl Fn() -> String) {
    eventually_some(async || holds().then_some(()), failure).await;
}

/// Repeats `attempt` until it returns a value.
///
/// # Panics
/// When it has not after [`LIMIT`], with the text of `failure`.
pub async fn eventually_some<T>(attempt: impl AsyncFnMut() -> Option<T>, failure: impl Fn() -> String) -> T {
    match within(LIMIT, attempt).await {
        Some(value) => value,
        None => panic!("not within {LIMIT:?}: {}", failure()),
    }
}

/// Waits until `holds` returns true, for tests that report errors.
///
/// # Errors
/// When it still does not after [`LIMIT`]; `what` names the condition.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) -> anyhow::Result<()> {
    let reached = within(LIMIT, async || holds().await.then_some(())).await;
    reached.with_context(|| format!("not within {LIMIT:?}: {what}"))
}

/// Repeats `attempt` until it returns a value; `None` when it has not after `limit` (real time). An attempt in progress
/// is not interrupted.
pub async fn within<T>(limit: Duration, mut attempt: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    let [mut pause, longest] = PAUSES;
    loop {
        if let Some(value) = attempt().await {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        // Fails only while the runtime shuts down, and then this task is dropped as well.
        let _ = tokio::task::spawn_blocking(move || std::thread::sleep(pause)).await;
        pause = longest.min(pause * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_does_not_advance_a_paused_clock() {
        let started = tokio::time::Instant::now();
        let mut looks = 0;
        let count = || {
            looks += 1;
            looks == 3
        };
        eventually(count, String::new).await;
        assert_eq!(started.elapsed(), Duration::ZERO);
        assert_eq!(looks, 3);
    }

    #[tokio::test]
    async fn a_condition_that_never_holds_ends_at_the_limit() {
        let limit = Duration::from_millis(10);
        let started = Instant::now();
        assert_eq!(within(limit, async || None::<()>).await, None);
        assert!(started.elapsed() >= limit);
    }
}
