//! HandshakeSlots for connections that are being set up: so many handshakes at a time, whoever the clients are. A client that
//! does not get on with its own loses its place to one that waits, or a few hundred silent ones would keep everybody
//! else out.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

/// The places.
#[derive(Debug)]
pub(crate) struct HandshakeSlots {
    limit: usize,
    /// How long a place is safe.
    safe: Duration,
    held: Mutex<Held>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    /// The longest held first, so ids ascend.
    places: VecDeque<Holder>,
}

#[derive(Debug)]
struct Holder {
    id: u64,
    since: Instant,
    lost: oneshot::Sender<()>,
}

/// One place; given back when dropped.
#[derive(Debug)]
pub(crate) struct SlotPermit {
    id: u64,
    places: Arc<HandshakeSlots>,
    lost: oneshot::Receiver<()>,
}

// === impl HandshakeSlots ===

impl HandshakeSlots {
    pub(crate) fn new(limit: usize, safe: Duration) -> Arc<Self> {
        Arc::new(Self { limit: limit.max(1), safe, held: Mutex::default(), freed: Notify::new() })
    }

    /// A place, as soon as one is free or has been held for longer than is safe.
    pub(crate) async fn take(self: &Arc<Self>) -> SlotPermit {
        loop {
            match self.try_take(Instant::now()) {
                Ok(place) => return place,
                Err(until) => tokio::select! {
                    () = self.freed.notified() => {}
                    () = sleep_until(until) => {}
                },
            }
        }
    }

    /// Or else when the longest held one is safe no more.
    fn try_take(self: &Arc<Self>, now: Instant) -> Result<SlotPermit, Instant> {
        let mut held = self.lock();
        if held.places.len() >= self.limit
            && let Some(longest) = held.places.front()
        {
            let until = longest.since + self.safe;
            if now < until {
                return Err(until);
            }
            if let Some(longest) = held.places.pop_front() {
                // It may have got through at this moment.
                let _ = longest.lost.send(());
            }
        }
        let (id, lost) = held.enter(now);
        Ok(SlotPermit { id, places: Arc::clone(self), lost })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Nothing panics while a place is half taken.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Held ===

impl Held {
    fn enter(&mut self, since: Instant) -> (u64, oneshot::Receiver<()>) {
        self.next += 1;
        let (lost, loses) = oneshot::channel();
        self.places.push_back(Holder { id: self.next, since, lost });
        (self.next, loses)
    }

    fn leave(&mut self, id: u64) {
        if let Ok(at) = self.places.binary_search_by_key(&id, |holder| holder.id) {
            self.places.remove(at);
        }
    }
}

// === impl SlotPermit ===

impl SlotPermit {
    /// Counts its time from now on: it was taken for a client that has only now come.
    pub(crate) fn begin(&mut self) {
        let mut held = self.places.lock();
        held.leave(self.id);
        (self.id, self.lost) = held.enter(Instant::now());
    }

    /// Resolves when the place has gone to somebody else.
    pub(crate) async fn lost(&mut self) {
        // The sender lives until it is used or this is dropped.
        let _ = (&mut self.lost).await;
    }
}

impl Drop for SlotPermit {
    fn drop(&mut self) {
        self.places.lock().leave(self.id);
        self.places.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAFE: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_place_that_is_given_back_is_taken_at_once() {
        let places = HandshakeSlots::new(2, SAFE);
        let (first, _second) = (places.take().await, places.take().await);
        let begun = Instant::now();
        let give_back = async {
            tokio::task::yield_now().await;
            drop(first);
        };
        let (_third, ()) = tokio::join!(places.take(), give_back);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(places.lock().places.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_held_for_too_long_is_lost_to_a_newcomer_the_longest_first() {
        let places = HandshakeSlots::new(2, SAFE);
        let mut first = places.take().await;
        tokio::time::advance(SAFE / 2).await;
        let mut second = places.take().await;
        let begun = Instant::now();
        let third = places.take().await;
        assert_eq!(begun.elapsed(), SAFE / 2);
        first.lost().await;
        assert!(tokio::time::timeout(SAFE * 9, second.lost()).await.is_err(), "nobody wants it");
        second.begin();
        let (mut third, begun) = (third, Instant::now());
        let fourth = places.take().await;
        third.lost().await;
        assert_eq!(begun.elapsed(), Duration::ZERO, "the third had its time, the second's has begun anew");
        drop((first, second, third, fourth));
        assert!(places.lock().places.is_empty());
    }
}
