//! Exponential backoff with jitter. Pure: the caller sleeps.

use std::time::Duration;

/// Doubles from `min` to `max`. Every delay has ±20 % jitter, so that nodes that restarted together do not retry together.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    current: Duration,
}

impl Backoff {
    /// A backoff with delays from `min` to `max`.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, current: min }
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.current;
        self.current = (self.current * 2).min(self.max);
        delay.mul_f64(0.8 + 0.4 * fastrand::f64())
    }

    /// Back to `min`, after a success.
    pub fn reset(&mut self) {
        self.current = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_limit_and_resets() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(300));
        for want in [100, 200, 300, 300] {
            let got = backoff.next_delay().as_secs_f64() * 1000.0;
            assert!(
                (f64::from(want) * 0.79..f64::from(want) * 1.21).contains(&got),
                "{got} is not about {want}"
            );
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(121));
    }
}
