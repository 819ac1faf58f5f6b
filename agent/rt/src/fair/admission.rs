//! Admission pacing: how long a flooding tenant waits before its next new connection, judged by how late timers fire. No
//! clock or task of its own.
//!
//! Fair scheduling divides the CPU time of this process. It is no help once the whole machine is behind, since then a
//! woken thread waits in every process. Timers that fire late are the sign of that: each one doubles the pause (up to a
//! limit), each one in time shortens it slowly, so that it stays near what the machine can follow. Connections that are
//! open already go on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often timers are sampled while a tenant floods.
pub(super) const SAMPLE_INTERVAL: Duration = Duration::from_millis(2);
/// A timer is late when it fires this long after the interval: the runtime and the kernel may each round a deadline up
/// by a millisecond.
const LATE: Duration = Duration::from_micros(2_500);
/// The shortest pause, and the longest one.
const MIN_PAUSE: Duration = Duration::from_micros(500);
pub(super) const MAX_PAUSE: Duration = Duration::from_millis(20);
/// A tenant floods when this many of its tasks wait for its share at once. A few connections that carry much spend their
/// quantum as well, but make no such backlog.
pub(super) const FLOOD_BACKLOG: usize = 8;
/// How long a tenant is paced after it was last seen to flood: while it is paced it looks calm.
pub(super) const HOLD: Duration = Duration::from_secs(10);

/// The pause that flooding tenants make before a new connection.
#[derive(Debug, Default)]
pub(super) struct AdmissionPacing {
    pause_nanos: AtomicU64,
}

/// Until when one tenant is paced, in milliseconds since the scheduler's start.
#[derive(Debug, Default)]
pub(super) struct PacedUntil(AtomicU64);

// === impl AdmissionPacing ===

impl AdmissionPacing {
    /// A timer of [`SAMPLE_INTERVAL`] took `elapsed` to fire; the pause from now on.
    pub(super) fn record_timer(&self, elapsed: Duration) -> Duration {
        let current = self.pause();
        let pause = match elapsed > SAMPLE_INTERVAL + LATE {
            true => (current * 2).clamp(MIN_PAUSE, MAX_PAUSE),
            false if current < MIN_PAUSE / 8 => Duration::ZERO,
            false => current - current / 32,
        };
        self.pause_nanos.store(u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        pause
    }

    pub(super) fn pause(&self) -> Duration {
        Duration::from_nanos(self.pause_nanos.load(Ordering::Relaxed))
    }
}

// === impl PacedUntil ===

impl PacedUntil {
    /// So many tasks of the tenant wait for its share. `now` is the time since the scheduler's start.
    pub(super) fn record_backlog(&self, backlog: usize, now: Duration) {
        if backlog >= FLOOD_BACKLOG {
            self.0.store(millis(now + HOLD), Ordering::Relaxed);
        }
    }

    /// Whether the tenant is paced at `now`.
    pub(super) fn is_after(&self, now: Duration) -> bool {
        self.0.load(Ordering::Relaxed) > millis(now)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_timers_double_the_pause_and_timely_ones_shorten_it_slowly() {
        let pacing = AdmissionPacing::default();
        assert_eq!(pacing.record_timer(SAMPLE_INTERVAL + LATE), Duration::ZERO, "that is in time");
        for micros in [500, 1_000, 2_000, 4_000, 8_000, 16_000, 20_000, 20_000] {
            assert_eq!(pacing.record_timer(SAMPLE_INTERVAL * 10), Duration::from_micros(micros));
        }
        let in_time = std::iter::repeat_with(|| pacing.record_timer(SAMPLE_INTERVAL));
        let pauses: Vec<Duration> = in_time.take_while(|pause| !pause.is_zero()).collect();
        assert!(pauses.is_sorted_by(|before, after| before > after));
        assert!((150..250).contains(&pauses.len()), "{}", pauses.len());
    }

    #[test]
    fn a_tenant_is_paced_for_a_while_after_its_last_large_backlog() {
        let paced = PacedUntil::default();
        let now = Duration::from_secs(100);
        paced.record_backlog(FLOOD_BACKLOG - 1, now);
        assert!(!paced.is_after(now));
        paced.record_backlog(FLOOD_BACKLOG, now);
        paced.record_backlog(1, now + HOLD / 2);
        assert!(paced.is_after(now + HOLD - Duration::from_millis(1)));
        assert!(!paced.is_after(now + HOLD));
    }
}
