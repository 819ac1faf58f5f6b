//! CPU time of a tunnel's owner task. The owner opens every record of its tunnel and writes and seals most, on one core at a
//! time: that core bounds what the streams can carry together.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Averaging window: long enough to even out bursts, short compared to a bulk transfer.
const WINDOW: Duration = Duration::from_millis(100);

/// CPU time of one task, written by that task and read by any. It is measured with the machine's clock even where tests
/// pause the runtime's.
#[derive(Debug)]
pub(crate) struct CpuLoad {
    start: Instant,
    /// Start of the current window, nanoseconds after `start`.
    window_start: AtomicU64,
    /// Nanoseconds spent in the current window.
    spent: AtomicU64,
    /// Load of the last complete window, in permille of a core.
    last_permille: AtomicU64,
}

impl CpuLoad {
    pub(crate) fn new() -> Self {
        let [window_start, spent, last_permille] = [0; 3].map(AtomicU64::new);
        Self { start: Instant::now(), window_start, spent, last_permille }
    }

    /// Runs a part of the task and adds the time it took.
    pub(crate) fn measure<T>(&self, part: impl FnOnce() -> T) -> T {
        let from = self.start.elapsed();
        let outcome = part();
        self.add(from, self.start.elapsed());
        outcome
    }

    /// Load over the last complete window, in permille of a core.
    pub(crate) fn permille(&self) -> u64 {
        self.permille_at(self.start.elapsed())
    }

    fn add(&self, from: Duration, to: Duration) {
        let window_start = Duration::from_nanos(self.window_start.load(Ordering::Relaxed));
        let spent = self.spent.load(Ordering::Relaxed) + nanos(to.saturating_sub(from));
        let lasted = to.saturating_sub(window_start);
        if lasted < WINDOW {
            self.spent.store(spent, Ordering::Relaxed);
            return;
        }
        self.last_permille.store(permille(spent, lasted), Ordering::Relaxed);
        self.spent.store(0, Ordering::Relaxed);
        self.window_start.store(nanos(to), Ordering::Relaxed);
    }

    fn permille_at(&self, now: Duration) -> u64 {
        let lasted = now.saturating_sub(Duration::from_nanos(self.window_start.load(Ordering::Relaxed)));
        if lasted < WINDOW {
            return self.last_permille.load(Ordering::Relaxed);
        }
        // The task was not polled since the window ended, so `add` did not close it.
        permille(self.spent.load(Ordering::Relaxed), lasted)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn permille(spent: u64, of: Duration) -> u64 {
    spent.saturating_mul(1000) / nanos(of).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    #[test]
    fn load_is_that_of_the_last_complete_window() {
        let load = CpuLoad::new();
        assert_eq!(load.permille_at(ms(0)), 0);
        load.add(ms(0), ms(40));
        assert_eq!(load.permille_at(ms(50)), 0, "the first window is not over");
        load.add(ms(60), ms(100));
        assert_eq!(load.permille_at(ms(101)), 800);
        load.add(ms(110), ms(120));
        assert_eq!(load.permille_at(ms(199)), 800);
        load.add(ms(199), ms(200));
        assert_eq!(load.permille_at(ms(201)), 110);
    }

    #[test]
    fn idle_task_has_no_load() {
        let load = CpuLoad::new();
        load.add(ms(0), ms(100));
        assert_eq!(load.permille_at(ms(150)), 1000);
        assert_eq!(load.permille_at(ms(200)), 0);
        load.add(ms(5000), ms(5001));
        assert_eq!(load.permille_at(ms(5002)), 0);
    }

    #[test]
    fn time_spent_in_a_poll_is_counted() {
        let load = CpuLoad::new();
        load.measure(|| {
            let begun = Instant::now();
            while begun.elapsed() < 2 * WINDOW {
                std::hint::spin_loop();
            }
        });
        assert!(load.last_permille.load(Ordering::Relaxed) > 900, "{load:?}");
    }
}
