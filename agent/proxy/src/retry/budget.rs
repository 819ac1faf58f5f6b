//! The retry budget of a pod: a token bucket, so that retries do not keep an overloaded service overloaded. Pure: time is
//! an argument.
//!
//! Each connection deposits `percent` % of a retry, and `reserve` retries are refilled per second, up to ten seconds'
//! worth; each retry withdraws one.

use tokio::time::Instant;

/// Tokens of one retry. A connection deposits `percent` tokens.
const RETRY: u64 = 100;
/// Most seconds of refill that the bucket keeps.
const REFILL_SECONDS: u64 = 10;
/// Most connections whose deposits the bucket keeps.
const DEPOSITS: u64 = 10_000;

/// The token bucket.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Retries refilled per second.
    reserve: u64,
    /// Percent of the connections that may be retried besides.
    percent: u64,
    tokens: u64,
    refilled: Instant,
}

impl Budget {
    pub(crate) fn new(reserve: u32, percent: u32, now: Instant) -> Self {
        let reserve = u64::from(reserve);
        Self { reserve, percent: percent.into(), tokens: reserve * REFILL_SECONDS * RETRY, refilled: now }
    }

    /// A connection starts.
    pub(crate) fn deposit(&mut self) {
        // Deposits may exceed what refilling keeps, but not without limit.
        let capacity = (self.reserve * REFILL_SECONDS * RETRY).max(self.percent * DEPOSITS);
        self.tokens = (self.tokens + self.percent).min(capacity.max(self.tokens));
    }

    /// Pays for one retry; false when the bucket has not enough tokens.
    pub(crate) fn withdraw(&mut self, now: Instant) -> bool {
        self.refill(now);
        let paid = self.tokens >= RETRY;
        if paid {
            self.tokens -= RETRY;
        }
        paid
    }

    /// What is in the bucket.
    pub(super) fn tokens(&mut self, now: Instant) -> u64 {
        self.refill(now);
        self.tokens
    }

    /// Keeps no more than this.
    pub(super) fn lower(&mut self, tokens: u64) {
        self.tokens = self.tokens.min(tokens);
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.duration_since(self.refilled);
        let earned = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX).saturating_mul(self.reserve);
        let earned = earned.saturating_mul(RETRY) / 1000;
        if earned > 0 {
            self.refilled = now;
            let capacity = (self.reserve * REFILL_SECONDS * RETRY).max(self.tokens);
            self.tokens = self.tokens.saturating_add(earned).min(capacity);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn connections_deposit_a_percentage_and_time_refills_the_reserve_up_to_ten_seconds() {
        let mut budget = Budget::new(1, 20, Instant::now());
        let spend = |budget: &mut Budget| {
            let mut spent = 0;
            while budget.withdraw(Instant::now()) {
                spent += 1;
            }
            spent
        };
        assert_eq!(spend(&mut budget), 10);
        (0..100).for_each(|_| budget.deposit());
        assert_eq!(spend(&mut budget), 20);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(spend(&mut budget), 3);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(spend(&mut budget), 10, "the refill is limited");
        (0..1_000_000).for_each(|_| budget.deposit());
        assert_eq!(spend(&mut budget), 2000, "deposits are limited");
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_without_reserve_and_percentage_allows_no_retry() {
        let mut budget = Budget::new(0, 0, Instant::now());
        budget.deposit();
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(!budget.withdraw(Instant::now()));
    }
}
