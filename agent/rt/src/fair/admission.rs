//! Admission pacing: how long a flooding tenant waits before its next new connection, judged by how late timers fire. No
//! clock or task of its own.
//!
//! Fair scheduling divides the CPU time of this process. It is no help once the whole machine is behind, since then a
//! woken thread waits in every process. Timers that fire late are the sign of that: each one doubles the pause (up to a
//! limit), each one in time shortens it by a thousandth, so that about one timer in a thousand is late. A faster recovery
//! makes more of them late, and the 99th percentile of a neighbour follows. Connections that are open already go on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::run_queue::Charged;

/// How often timers are sampled while a tenant floods.
pub(super) const SAMPLE_INTERVAL: Duration = Duration::from_millis(2);
/// A timer is late when it fires this long after the interval: the runtime rounds a deadline up to its next millisecond.
const LATE: Duration = Duration::from_micros(1_500);
/// The shortest pause, and the longest one: a machine that is behind for other reasons must not take a busy server from
/// the mesh, so a flooding tenant keeps about 200 a second and listener.
const MIN_PAUSE: Duration = Duration::from_micros(500);
pub(super) const MAX_PAUSE: Duration = Duration::from_millis(4);
/// A tenant floods when, over [`WINDOW`], it opens this many connections (200 a second) and is charged a twentieth of the
/// machine's CPU time, while other tenants use it too. Only new connections are paced, so how much the open ones carry is
/// the scheduler's business; a tenant that uses little is not why the machine is behind; and one that is alone delays no
/// other.
const FLOOD_CONNECTIONS: u32 = 10;
const FLOOD_CPU: u32 = 20;
const WINDOW: Duration = Duration::from_millis(50);
/// Others use the machine if they are charged a thousandth of one processor: more than an idle connection's keepalive.
const IN_USE: u32 = 1_000;
/// How long a tenant is paced after it was last seen to flood: while it is paced it looks calm, and each time the hold
/// ends a flood goes on unpaced for a window.
pub(super) const HOLD: Duration = Duration::from_secs(60);

/// The pause that flooding tenants make before a new connection.
#[derive(Debug, Default)]
pub(super) struct AdmissionPacing {
    pause_nanos: AtomicU64,
}

/// Tells whether one tenant floods. Times are since the scheduler's start.
#[derive(Debug, Default)]
pub(super) struct FloodDetector(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    start: Duration,
    connections: u32,
    /// What was charged by its start.
    charged: Charged,
    paced_until: Duration,
}

// === impl AdmissionPacing ===

impl AdmissionPacing {
    /// A timer of [`SAMPLE_INTERVAL`] took `elapsed` to fire; the pause from now on.
    pub(super) fn record_timer(&self, elapsed: Duration) -> Duration {
        let current = self.pause();
        let pause = match elapsed > SAMPLE_INTERVAL + LATE {
            true => (current * 2).clamp(MIN_PAUSE, MAX_PAUSE),
            false if current < MIN_PAUSE / 8 => Duration::ZERO,
            false => current - current / 1024,
        };
        self.pause_nanos.store(u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        pause
    }

    pub(super) fn pause(&self) -> Duration {
        Duration::from_nanos(self.pause_nanos.load(Ordering::Relaxed))
    }
}

// === impl FloodDetector ===

impl FloodDetector {
    /// Counts a connection that is about to be accepted; whether the tenant is paced. `charged` is asked once per window,
    /// on a machine with so many `cpus`.
    pub(super) fn record(&self, now: Duration, cpus: u32, charged: impl FnOnce() -> Charged) -> bool {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        window.connections = window.connections.saturating_add(1);
        let elapsed = now.saturating_sub(window.start);
        if elapsed >= WINDOW {
            let charged = charged();
            let is_flood = window.is_flood(elapsed, cpus, charged);
            let paced_until = if is_flood { now + HOLD } else { window.paced_until };
            *window = Window { start: now, connections: 0, charged, paced_until };
        }
        now < window.paced_until
    }
}

impl Window {
    fn is_flood(&self, elapsed: Duration, cpus: u32, charged: Charged) -> bool {
        let own = charged.own.saturating_sub(self.charged.own);
        let others = charged.others.saturating_sub(self.charged.others);
        WINDOW * self.connections >= elapsed * FLOOD_CONNECTIONS
            && own * FLOOD_CPU >= elapsed * cpus
            && others * IN_USE >= elapsed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_timers_double_the_pause_and_timely_ones_shorten_it_slowly() {
        let pacing = AdmissionPacing::default();
        assert_eq!(pacing.record_timer(SAMPLE_INTERVAL + LATE), Duration::ZERO, "that is in time");
        for micros in [500, 1_000, 2_000, 4_000, 4_000] {
            assert_eq!(pacing.record_timer(SAMPLE_INTERVAL * 10), Duration::from_micros(micros));
        }
        let in_time = std::iter::repeat_with(|| pacing.record_timer(SAMPLE_INTERVAL));
        let pauses: Vec<Duration> = in_time.take_while(|pause| !pause.is_zero()).collect();
        assert!(pauses.is_sorted_by(|before, after| before > after));
        // From the longest pause to none: 4 ms · (1023/1024)^n < 62.5 µs at n = 4,257.
        assert!((4_200..4_300).contains(&pauses.len()), "{}", pauses.len());
    }

    #[test]
    fn only_many_connections_that_cost_much_beside_other_tenants_are_a_flood() {
        let cpus = 2;
        let (much, some) = (WINDOW * cpus / FLOOD_CPU, WINDOW / IN_USE);
        let less = |time: Duration| time - Duration::from_nanos(1);
        for (connections, own, others, is_flood) in [
            (FLOOD_CONNECTIONS, much, some, true),
            (FLOOD_CONNECTIONS - 1, much, some, false),
            (FLOOD_CONNECTIONS, less(much), some, false),
            (FLOOD_CONNECTIONS, much, less(some), false),
        ] {
            let window = Window { connections, ..Window::default() };
            let case = format!("{connections} {own:?} {others:?}");
            assert_eq!(window.is_flood(WINDOW, cpus, Charged { own, others }), is_flood, "{case}");
        }
    }

    #[test]
    fn a_tenant_is_paced_for_a_while_after_a_flood() {
        let detector = FloodDetector::default();
        let not_asked = || -> Charged { panic!("in the middle of a window") };
        for _ in 1..FLOOD_CONNECTIONS {
            assert!(!detector.record(WINDOW / 2, 1, not_asked));
        }
        let flood = || Charged { own: WINDOW, others: WINDOW };
        assert!(detector.record(WINDOW, 1, flood));
        let end = WINDOW + HOLD;
        assert!(detector.record(end - Duration::from_millis(1), 1, flood), "while it is paced it looks calm");
        assert!(!detector.record(end, 1, not_asked));
    }
}
