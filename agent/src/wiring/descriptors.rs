//! Readiness while the process has no descriptors for connections that it should carry. A pod that holds its share is no
//! reason: the others are served.

use std::time::Duration;

use isthmus_rt::descriptors::DescriptorBudget;
use isthmus_rt::ready::{BlockReady, Readiness};
use tokio::time::Instant;

/// Name under which readiness is blocked.
const READINESS: &str = "file descriptors";
/// How often the budget is looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long after the last exhaustion the agent is ready again.
const CALM: Duration = Duration::from_secs(10);

/// Blocks readiness while connections are refused that pods should have. Never returns.
pub(crate) async fn watch(budget: DescriptorBudget, readiness: Readiness) {
    let mut seen = budget.exhaustions();
    let mut blocked: Option<(BlockReady, Instant)> = None;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let exhaustions = budget.exhaustions();
        if exhaustions != seen || budget.is_spent() {
            seen = exhaustions;
            let guard = blocked.take().map(|(guard, _)| guard).unwrap_or_else(|| {
                tracing::warn!(
                    used = budget.used(), limit = budget.limit(),
                    "not ready: no file descriptor is left for connections of pods that hold few; raise the limit of \
                     open files (RLIMIT_NOFILE), see isthmus_descriptor_budget_refusals_total"
                );
                readiness.block(READINESS)
            });
            blocked = Some((guard, Instant::now()));
        } else if blocked.as_ref().is_some_and(|(_, last)| last.elapsed() >= CALM) {
            blocked = None;
            tracing::info!(used = budget.used(), limit = budget.limit(), "file descriptors are free again");
        }
    }
}

#[cfg(test)]
mod tests {
    use isthmus_rt::task::Tasks;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_exhausted_process_is_not_ready_and_a_pod_at_its_limit_is_none() {
        let (budget, readiness, tasks) =
            (DescriptorBudget::new(100, 100), Readiness::default(), Tasks::new("test"));
        tasks.spawn("watch", watch(budget.clone(), readiness.clone()));
        let greedy = budget.share(|_| ());
        let held: Vec<_> = std::iter::from_fn(|| greedy.acquire()).collect();
        assert!(!held.is_empty());
        tokio::time::sleep(2 * INTERVAL).await;
        assert!(readiness.pending().is_empty());
        let rest = greedy.hold(100 - budget.used());
        tokio::time::sleep(2 * INTERVAL).await;
        assert_eq!(readiness.pending(), [READINESS]);
        drop(rest);
        tokio::time::sleep(CALM - INTERVAL).await;
        assert_eq!(readiness.pending(), [READINESS], "it may be full again at once");
        tokio::time::sleep(3 * INTERVAL).await;
        assert!(readiness.pending().is_empty());
        budget.record_exhaustion();
        tokio::time::sleep(2 * INTERVAL).await;
        assert_eq!(readiness.pending(), [READINESS]);
    }
}
