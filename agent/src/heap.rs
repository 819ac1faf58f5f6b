//! Gives memory back to the system when much of it became free. This is the one place that does.

use std::time::Duration;

use isthmus_sys::{heap, process_metrics};

/// How often the heap is looked at.
const INTERVAL: Duration = Duration::from_secs(2);
/// Resident memory beyond what is allocated that is worth giving back.
const WORTH: u64 = 1024 * 1024;

/// What the last look found.
#[derive(Debug, Default)]
struct Slack {
    /// What could not be given back: pages with something allocated on them.
    kept: u64,
}

impl Slack {
    /// Whether there is something to give back.
    fn is_worth(&mut self, now: u64) -> bool {
        self.kept = self.kept.min(now);
        now > self.kept + WORTH
    }
}

/// Gives memory back. Never returns where the allocator says what is allocated.
pub(crate) async fn give_back() {
    let mut slack = Slack::default();
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let Some(now) = unused() else { return };
        if slack.is_worth(now) {
            heap::trim();
            let Some(kept) = unused() else { return };
            slack.kept = kept;
            tracing::debug!(before = now, after = kept, "gave free memory back to the system");
        }
    }
}

/// Resident memory beyond what is allocated.
fn unused() -> Option<u64> {
    let resident = process_metrics::anonymous_bytes()?;
    Some(resident.saturating_sub(heap::allocated_bytes()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_given_back_is_not_tried_again() {
        let mut slack = Slack::default();
        assert!(!slack.is_worth(WORTH) && slack.is_worth(WORTH + 1));
        slack.kept = WORTH;
        assert!(!slack.is_worth(2 * WORTH) && slack.is_worth(2 * WORTH + 1));
        // It became less by itself.
        assert!(!slack.is_worth(10) && slack.is_worth(WORTH + 11));
    }
}
