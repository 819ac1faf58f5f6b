//! How many retries a pod may make: as many as are in its purse. Every connection puts a part of one in, and time does;
//! when everything fails, retries must not be what keeps it failing. Pure: time is an argument.

use tokio::time::Instant;

/// A retry, in the purse's unit.
const RETRY: u64 = 100;
/// How many seconds' worth of the reserve are kept.
const KEPT: u64 = 10;

/// The purse.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Retries a second that may always be made.
    reserve: u64,
    /// Percent of the connections that may be retried besides.
    percent: u64,
    held: u64,
    filled: Instant,
}

impl Budget {
    pub(crate) fn new(reserve: u32, percent: u32, now: Instant) -> Self {
        let reserve = u64::from(reserve);
        Self { reserve, percent: percent.into(), held: reserve * KEPT * RETRY, filled: now }
    }

    /// A connection was begun.
    pub(crate) fn connection(&mut self) {
        // What many connections put in may be worth more than the reserve, but not without end.
        let most = (self.reserve * KEPT * RETRY).max(self.percent * 10_000);
        self.held = (self.held + self.percent).min(most.max(self.held));
    }

    /// Whether one more retry may be made; it is paid for.
    pub(crate) fn retry(&mut self, now: Instant) -> bool {
        let passed = now.duration_since(self.filled);
        let earned = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX).saturating_mul(self.reserve);
        let earned = earned.saturating_mul(RETRY) / 1000;
        if earned > 0 {
            self.filled = now;
            let most = (self.reserve * KEPT * RETRY).max(self.held);
            self.held = self.held.saturating_add(earned).min(most);
        }
        let paid = self.held >= RETRY;
        if paid {
            self.held -= RETRY;
        }
        paid
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn retries_are_a_share_of_the_connections_and_a_few_besides() {
        let mut budget = Budget::new(1, 20, Instant::now());
        let spend = |budget: &mut Budget| {
            let mut spent = 0;
            while budget.retry(Instant::now()) {
                spent += 1;
            }
            spent
        };
        assert_eq!(spend(&mut budget), 10);
        (0..100).for_each(|_| budget.connection());
        assert_eq!(spend(&mut budget), 20);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(spend(&mut budget), 3);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(spend(&mut budget), 10, "what is not needed is not kept for ever");
        (0..1_000_000).for_each(|_| budget.connection());
        assert_eq!(spend(&mut budget), 2000);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_retried_without_any() {
        let mut budget = Budget::new(0, 0, Instant::now());
        budget.connection();
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(!budget.retry(Instant::now()));
    }
}
