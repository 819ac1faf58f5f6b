//! How often the status of one object is written. Two controllers that disagree, or two versions of this one during a
//! rollout, would otherwise overwrite each other as fast as their watches are. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::kinds::Kind;
use crate::objects::ObjectName;

/// Writes of one object within [`WINDOW`].
const WRITES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);

/// The writes of the last minute, by object.
#[derive(Debug, Default)]
pub(crate) struct WriteBudget(BTreeMap<(Kind, ObjectName), Window>);

#[derive(Debug, Clone, Copy)]
struct Window {
    since: Instant,
    writes: u32,
}

impl WriteBudget {
    /// Counts a write.
    ///
    /// # Errors
    /// When the budget is spent: the time from which the object may be written again, and whether that is news.
    pub(crate) fn spend(
        &mut self,
        kind: Kind,
        name: &ObjectName,
        now: Instant,
    ) -> Result<(), (Instant, bool)> {
        self.0.retain(|_, window| now < window.since + WINDOW);
        let window = self.0.entry((kind, name.clone())).or_insert(Window { since: now, writes: 0 });
        window.writes = window.writes.saturating_add(1);
        if window.writes <= WRITES {
            return Ok(());
        }
        Err((window.since + WINDOW, window.writes == WRITES + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_object_is_written_a_few_times_a_minute() {
        let mut budget = WriteBudget::default();
        let (one, other) = (ObjectName::new("a", "one"), ObjectName::new("a", "other"));
        let start = Instant::now();
        for _ in 0..WRITES {
            assert_eq!(budget.spend(Kind::Gateway, &one, start), Ok(()));
        }
        assert_eq!(budget.spend(Kind::Gateway, &one, start), Err((start + WINDOW, true)));
        assert_eq!(budget.spend(Kind::Gateway, &one, start), Err((start + WINDOW, false)));
        assert_eq!(budget.spend(Kind::Gateway, &other, start), Ok(()));
        assert_eq!(budget.spend(Kind::TlsRoute, &one, start), Ok(()));
        assert_eq!(budget.spend(Kind::Gateway, &one, start + WINDOW), Ok(()));
    }
}
