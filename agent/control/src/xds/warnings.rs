//! Bounds the warnings that a control plane can cause: a few at once, then a few a minute. What is left out is counted, and
//! logged at debug level by the caller.

use std::time::Duration;

use tokio::time::Instant;

/// Warnings in one window.
const MOST: u32 = 6;
const WINDOW: Duration = Duration::from_secs(60);

/// The warnings of the current window.
#[derive(Debug)]
pub(super) struct Warnings {
    begun: Instant,
    logged: u32,
    left_out: u64,
}

impl Warnings {
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), logged: 0, left_out: 0 }
    }

    /// Whether one more may be logged, and how many were left out before it.
    pub(super) fn next(&mut self) -> Option<u64> {
        if self.begun.elapsed() >= WINDOW {
            (self.begun, self.logged) = (Instant::now(), 0);
        }
        if self.logged == MOST {
            self.left_out += 1;
            return None;
        }
        self.logged += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_a_few_lines_a_minute_and_the_next_one_counts_what_was_left_out() {
        let mut warnings = Warnings::new();
        let logged = (0..1000).filter_map(|_| warnings.next()).count();
        assert_eq!(logged, MOST as usize);
        tokio::time::advance(WINDOW).await;
        assert_eq!(warnings.next(), Some(1000 - u64::from(MOST)));
        assert_eq!(warnings.next(), Some(0));
    }
}
