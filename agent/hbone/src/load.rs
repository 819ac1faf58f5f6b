//! How much of a core a tunnel's owner takes. The owner encrypts and frames for all streams of its tunnel, on one core
//! at a time: that core is the ceiling of what they can carry together.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// What a share is an average over. Long enough for bursts to even out, short against the life of a bulk transfer.
const WINDOW: Duration = Duration::from_millis(100);

/// A task's use of its core: written by the task alone, read by anyone. The clock is the machine's, whatever the
/// runtime's is: time spent computing passes on both.
#[derive(Debug)]
pub(crate) struct Load {
    start: Instant,
    /// When the window began, nanoseconds after the start.
    begun: AtomicU64,
    /// Nanoseconds spent in it so far.
    spent: AtomicU64,
    /// Thousandths of the last whole window.
    last: AtomicU64,
}

impl Load {
    pub(crate) fn new() -> Self {
        let [begun, spent, last] = [0; 3].map(AtomicU64::new);
        Self { start: Instant::now(), begun, spent, last }
    }

    /// Polls a part of the task, on its account.
    pub(crate) fn poll<F: Future>(&self, part: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let from = self.start.elapsed();
        let polled = part.poll(cx);
        self.add(from, self.start.elapsed());
        polled
    }

    /// Thousandths of a core that the task takes now.
    pub(crate) fn share(&self) -> u64 {
        self.share_at(self.start.elapsed())
    }

    fn add(&self, from: Duration, to: Duration) {
        let begun = Duration::from_nanos(self.begun.load(Ordering::Relaxed));
        let spent = self.spent.load(Ordering::Relaxed) + nanos(to.saturating_sub(from));
        let lasted = to.saturating_sub(begun);
        if lasted < WINDOW {
            self.spent.store(spent, Ordering::Relaxed);
            return;
        }
        self.last.store(thousandths(spent, lasted), Ordering::Relaxed);
        self.spent.store(0, Ordering::Relaxed);
        self.begun.store(nanos(to), Ordering::Relaxed);
    }

    fn share_at(&self, now: Duration) -> u64 {
        let lasted = now.saturating_sub(Duration::from_nanos(self.begun.load(Ordering::Relaxed)));
        if lasted < WINDOW {
            return self.last.load(Ordering::Relaxed);
        }
        // The task has not run since the window was over: what it did in it is all there is.
        thousandths(self.spent.load(Ordering::Relaxed), lasted)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn thousandths(spent: u64, of: Duration) -> u64 {
    spent.saturating_mul(1000) / nanos(of).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    #[test]
    fn a_share_is_of_the_last_whole_window() {
        let load = Load::new();
        assert_eq!(load.share_at(ms(0)), 0);
        load.add(ms(0), ms(40));
        assert_eq!(load.share_at(ms(50)), 0, "the first window is not over");
        load.add(ms(60), ms(100));
        assert_eq!(load.share_at(ms(101)), 800);
        load.add(ms(110), ms(120));
        assert_eq!(load.share_at(ms(199)), 800);
        load.add(ms(199), ms(200));
        assert_eq!(load.share_at(ms(201)), 110);
    }

    #[test]
    fn a_task_that_sleeps_has_no_share() {
        let load = Load::new();
        load.add(ms(0), ms(100));
        assert_eq!(load.share_at(ms(150)), 1000);
        assert_eq!(load.share_at(ms(200)), 0);
        load.add(ms(5000), ms(5001));
        assert_eq!(load.share_at(ms(5002)), 0);
    }

    #[test]
    fn time_spent_in_a_poll_is_counted() {
        let load = Load::new();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut busy = std::pin::pin!(async {
            let begun = Instant::now();
            while begun.elapsed() < 2 * WINDOW {
                std::hint::spin_loop();
            }
        });
        assert!(load.poll(busy.as_mut(), &mut cx).is_ready());
        assert!(load.last.load(Ordering::Relaxed) > 900, "{load:?}");
    }
}
