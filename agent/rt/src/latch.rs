//! An event that happens once and that many tasks wait for. Connections of all threads wait for the same few events
//! (their pod's drain, their group's end) in each of their polls, so a wait that has registered its waker costs one load
//! of an atomic that no one writes, and no lock. tokio's `watch` and `CancellationToken` lock what they share per poll.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// The event.
#[derive(Debug, Default)]
pub(crate) struct Latch {
    is_set: AtomicBool,
    waiters: Mutex<Waiters>,
}

/// Wakers by key; the keys of waits that ended are used again.
#[derive(Debug, Default)]
struct Waiters {
    wakers: Vec<Option<Waker>>,
    unused: Vec<usize>,
}

/// Resolves once the event has happened.
#[derive(Debug)]
pub(crate) struct Wait {
    latch: Arc<Latch>,
    /// The key in the list, and the waker that is there.
    registered: Option<(usize, Waker)>,
}

// === impl Latch ===

impl Latch {
    /// The event happens: every wait ends.
    pub(crate) fn set(&self) {
        if self.is_set.swap(true, Ordering::AcqRel) {
            return;
        }
        let waiting: Vec<Waker> = self.lock().wakers.iter_mut().filter_map(Option::take).collect();
        // Without the lock: a waker may drop a task, whose wait removes itself.
        waiting.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    pub(crate) fn wait(self: &Arc<Self>) -> Wait {
        Wait { latch: Arc::clone(self), registered: None }
    }

    fn lock(&self) -> MutexGuard<'_, Waiters> {
        // Nothing panics between two related changes.
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Waiters ===

impl Waiters {
    fn insert(&mut self, waker: Waker) -> usize {
        if let Some(key) = self.unused.pop() {
            self.replace(key, waker);
            return key;
        }
        self.wakers.push(Some(waker));
        self.wakers.len() - 1
    }

    fn replace(&mut self, key: usize, waker: Waker) -> Option<Waker> {
        self.wakers.get_mut(key)?.replace(waker)
    }

    /// Returns the waker, which must not be dropped under the lock.
    fn remove(&mut self, key: usize) -> Option<Waker> {
        let waker = self.wakers.get_mut(key)?.take();
        self.unused.push(key);
        if self.unused.len() == self.wakers.len() {
            // Memory that a burst needed goes back.
            (self.wakers, self.unused) = (Vec::new(), Vec::new());
        }
        waker
    }
}

// === impl Wait ===

impl Future for Wait {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { latch, registered } = &mut *self;
        if latch.is_set() {
            return Poll::Ready(());
        }
        match registered {
            Some((_, known)) if known.will_wake(cx.waker()) => return Poll::Pending,
            Some((key, known)) => {
                known.clone_from(cx.waker());
                let replaced = latch.lock().replace(*key, cx.waker().clone());
                drop(replaced);
            }
            None => {
                let key = latch.lock().insert(cx.waker().clone());
                *registered = Some((key, cx.waker().clone()));
            }
        }
        // Once more: the wakers may have been called before this one was among them.
        if latch.is_set() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some((key, _)) = self.registered.take() {
            let removed = self.latch.lock().remove(key);
            drop(removed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn every_waiter_is_woken_by_the_waker_of_its_last_poll() {
        let latch = Arc::new(Latch::default());
        let [first, second, third] = [(); 3].map(|()| Arc::new(Count::default()));
        let [one, two, three] = [&first, &second, &third].map(|count| Waker::from(Arc::clone(count)));
        let (mut moved, mut stays) = (pin!(latch.wait()), pin!(latch.wait()));
        assert!(moved.as_mut().poll(&mut Context::from_waker(&one)).is_pending());
        assert!(moved.as_mut().poll(&mut Context::from_waker(&two)).is_pending());
        for _ in 0..2 {
            assert!(stays.as_mut().poll(&mut Context::from_waker(&three)).is_pending());
        }
        assert_eq!(latch.lock().wakers.len(), 2);
        latch.set();
        latch.set();
        let woken = [first, second, third].map(|count| count.0.load(Ordering::Relaxed));
        assert_eq!(woken, [0, 1, 1]);
        assert!(latch.is_set());
        assert!(moved.as_mut().poll(&mut Context::from_waker(&one)).is_ready());
        assert!(pin!(latch.wait()).poll(&mut Context::from_waker(&one)).is_ready());
    }

    #[test]
    fn a_wait_that_ends_leaves_nothing_behind() {
        let latch = Arc::new(Latch::default());
        let waker = Waker::noop();
        for _ in 0..3 {
            let mut waits: Vec<Wait> = (0..5).map(|_| latch.wait()).collect();
            for wait in &mut waits {
                assert!(Pin::new(wait).poll(&mut Context::from_waker(waker)).is_pending());
            }
            drop(waits.remove(2));
            assert!(pin!(latch.wait()).poll(&mut Context::from_waker(waker)).is_pending());
            assert_eq!(latch.lock().wakers.len(), 5);
        }
        assert_eq!(latch.lock().wakers.capacity(), 0);
    }
}
