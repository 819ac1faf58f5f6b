//! How long a new connection of a pod that floods us waits, by how late timers are. No clock or task of its own.
//!
//! A timer that is late says that whatever is woken on this machine waits, whoever's it is. The pause is doubled each time,
//! and shrinks slowly when timers are in time, so it stays near what the machine can follow.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often timers are looked at while somebody floods us.
pub(super) const TICK: Duration = Duration::from_millis(2);
/// The runtime rounds deadlines and the kernel's wait up to the next millisecond each.
const EXACT: Duration = Duration::from_millis(2);
/// What is later than this is late.
const LATE: Duration = Duration::from_micros(500);
/// The first pause, and the longest one.
const FIRST: Duration = Duration::from_micros(500);
pub(super) const SLOWEST: Duration = Duration::from_millis(20);
/// How long a pod is held to the pace after it was last seen to flood us, in milliseconds: held back, it looks calm.
pub(super) const HELD: u64 = 10_000;

/// The pace of those that flood us.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// In nanoseconds.
    pause: AtomicU64,
}

impl Pace {
    /// A timer of one [`TICK`] took so long; the pause that there is from now on.
    pub(super) fn timer_took(&self, time: Duration) -> Duration {
        let known = self.pause();
        let pause = match time > TICK + EXACT + LATE {
            true => (known * 2).clamp(FIRST, SLOWEST),
            false if known < FIRST / 8 => Duration::ZERO,
            false => known - known / 32,
        };
        self.pause.store(u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        pause
    }

    /// How long a new connection waits now.
    pub(super) fn pause(&self) -> Duration {
        Duration::from_nanos(self.pause.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_is_doubled_by_late_timers_up_to_a_limit_and_goes_slowly_without_them() {
        let pace = Pace::default();
        assert_eq!(pace.timer_took(TICK + EXACT + LATE), Duration::ZERO, "that is in time");
        for micros in [500, 1_000, 2_000, 4_000, 8_000, 16_000, 20_000, 20_000] {
            assert_eq!(pace.timer_took(TICK * 10), Duration::from_micros(micros));
        }
        let in_time = std::iter::repeat_with(|| pace.timer_took(TICK)).take_while(|pause| !pause.is_zero());
        let pauses: Vec<Duration> = in_time.collect();
        assert!(pauses.is_sorted_by(|before, after| before > after));
        assert!((150..250).contains(&pauses.len()), "{}", pauses.len());
    }
}
