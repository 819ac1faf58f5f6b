//! How busy a data thread is. Measured when a connection is placed, from what its runtime counts anyway: an idle thread
//! does nothing for it, and a busy one nothing more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use super::steering::Load;

/// A measurement is used for this long: long enough to even out bursts, short compared to a bulk transfer.
const WINDOW: Duration = Duration::from_millis(100);

/// Load of one thread, read by any.
#[derive(Debug, Default)]
pub(super) struct LoadMeter {
    /// When it was measured, in nanoseconds.
    measured_at: AtomicU64,
    /// What the thread had been busy in all, in nanoseconds.
    busy: AtomicU64,
    permille: AtomicU64,
    arrivals: AtomicU64,
    occupants: AtomicUsize,
}

/// Something that stays on a thread for long.
#[derive(Debug)]
pub struct Occupancy(Arc<LoadMeter>);

// === impl LoadMeter ===

impl LoadMeter {
    /// The load at a time; `busy` tells how long the thread has been busy in all. Measures again what is older than a
    /// window: then it is the average since, so that a first look after a long silence knows less than the next one.
    pub(super) fn read(&self, now: Duration, busy: impl FnOnce() -> Duration) -> Load {
        let (now, measured_at) = (nanos(now), self.measured_at.load(Ordering::Relaxed));
        let elapsed = now.saturating_sub(measured_at);
        let is_due = elapsed >= nanos(WINDOW);
        let relaxed = Ordering::Relaxed;
        // One of those who find it due measures.
        if is_due && self.measured_at.compare_exchange(measured_at, now, relaxed, relaxed).is_ok() {
            let busy = nanos(busy());
            let spent = busy.saturating_sub(self.busy.swap(busy, relaxed));
            self.permille.store(spent.saturating_mul(1000) / elapsed.max(1), relaxed);
            self.arrivals.store(0, relaxed);
        }
        Load {
            busy_permille: self.permille.load(relaxed),
            arrivals: self.arrivals.load(relaxed),
            occupants: self.occupants.load(relaxed),
        }
    }

    /// A connection was given to the thread.
    pub(super) fn add_arrival(&self) {
        self.arrivals.fetch_add(1, Ordering::Relaxed);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

// === impl Occupancy ===

impl Occupancy {
    pub(super) fn new(meter: Arc<LoadMeter>) -> Self {
        meter.occupants.fetch_add(1, Ordering::Relaxed);
        Self(meter)
    }
}

impl Drop for Occupancy {
    fn drop(&mut self) {
        self.0.occupants.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_measured_once_per_window_and_then_includes_what_had_arrived() {
        let meter = Arc::new(LoadMeter::default());
        let ms = Duration::from_millis;
        let at = |now, busy| {
            let load = meter.read(ms(now), || ms(busy));
            (load.busy_permille, load.arrivals)
        };
        meter.add_arrival();
        assert_eq!(at(99, 99), (0, 1), "not due");
        assert_eq!(at(100, 60), (600, 0));
        meter.add_arrival();
        assert_eq!(at(150, 110), (600, 1));
        assert_eq!(at(1100, 160), (100, 0), "the average since");
        let occupants = [(); 2].map(|()| Occupancy::new(Arc::clone(&meter)));
        assert_eq!(meter.read(ms(1100), || ms(160)).occupants, 2);
        drop(occupants);
        assert_eq!(meter.read(ms(1100), || ms(160)).occupants, 0);
    }
}
