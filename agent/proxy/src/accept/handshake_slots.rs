//! Limits the handshakes in progress on a listener, over all clients. While all slots are taken, a new connection
//! evicts the oldest handshake once that exceeded its grace period: otherwise a few hundred silent clients would
//! block the listener until their handshakes time out. Knows no protocol.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

/// The slots of one listener.
#[derive(Debug)]
pub(crate) struct HandshakeSlots {
    limit: usize,
    /// A handshake younger than this is not evicted.
    grace: Duration,
    taken: Mutex<TakenSlots>,
    released: Notify,
}

#[derive(Debug, Default)]
struct TakenSlots {
    next_id: u64,
    /// Oldest first, so ids ascend.
    slots: VecDeque<TakenSlot>,
}

#[derive(Debug)]
struct TakenSlot {
    id: u64,
    since: Instant,
    evict: oneshot::Sender<()>,
}

/// One slot; released when dropped.
#[derive(Debug)]
pub(crate) struct SlotPermit {
    id: u64,
    slots: Arc<HandshakeSlots>,
    evicted: oneshot::Receiver<()>,
}

// === impl HandshakeSlots ===

impl HandshakeSlots {
    pub(crate) fn new(limit: usize, grace: Duration) -> Arc<Self> {
        Arc::new(Self { limit: limit.max(1), grace, taken: Mutex::default(), released: Notify::new() })
    }

    /// Waits until a slot is released, or the oldest handshake may be evicted.
    pub(crate) async fn acquire(self: &Arc<Self>) -> SlotPermit {
        loop {
            match self.try_acquire(Instant::now()) {
                Ok(permit) => return permit,
                Err(evictable_at) => tokio::select! {
                    () = self.released.notified() => {}
                    () = sleep_until(evictable_at) => {}
                },
            }
        }
    }

    /// Acquires a slot, or returns when the oldest handshake may be evicted.
    fn try_acquire(self: &Arc<Self>, now: Instant) -> Result<SlotPermit, Instant> {
        let mut taken = self.lock();
        if taken.slots.len() >= self.limit
            && let Some(oldest) = taken.slots.front()
        {
            let evictable_at = oldest.since + self.grace;
            if now < evictable_at {
                return Err(evictable_at);
            }
            if let Some(oldest) = taken.slots.pop_front() {
                // Fails if the handshake has finished at this moment.
                let _ = oldest.evict.send(());
            }
        }
        let (id, evicted) = taken.insert(now);
        Ok(SlotPermit { id, slots: Arc::clone(self), evicted })
    }

    fn lock(&self) -> MutexGuard<'_, TakenSlots> {
        // A poisoned lock is still consistent: no code panics between two related changes.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl TakenSlots ===

impl TakenSlots {
    fn insert(&mut self, since: Instant) -> (u64, oneshot::Receiver<()>) {
        self.next_id += 1;
        let (evict, evicted) = oneshot::channel();
        self.slots.push_back(TakenSlot { id: self.next_id, since, evict });
        (self.next_id, evicted)
    }

    fn remove(&mut self, id: u64) {
        if let Ok(at) = self.slots.binary_search_by_key(&id, |slot| slot.id) {
            self.slots.remove(at);
        }
    }
}

// === impl SlotPermit ===

impl SlotPermit {
    /// Starts the grace period anew: the accept loop acquires a slot before there is a connection for it.
    pub(crate) fn restart_grace(&mut self) {
        let mut taken = self.slots.lock();
        taken.remove(self.id);
        (self.id, self.evicted) = taken.insert(Instant::now());
    }

    /// Resolves when this handshake is evicted for another connection.
    pub(crate) async fn evicted(&mut self) {
        // The sender lives until it is used or this permit is dropped.
        let _ = (&mut self.evicted).await;
    }
}

impl Drop for SlotPermit {
    fn drop(&mut self) {
        self.slots.lock().remove(self.id);
        self.slots.released.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_released_slot_is_acquired_at_once() {
        let slots = HandshakeSlots::new(2, GRACE);
        let (first, _second) = (slots.acquire().await, slots.acquire().await);
        let start = Instant::now();
        let release = async {
            tokio::task::yield_now().await;
            drop(first);
        };
        let (_third, ()) = tokio::join!(slots.acquire(), release);
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(slots.lock().slots.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_evicts_the_oldest_handshake_after_its_grace_period() {
        let slots = HandshakeSlots::new(2, GRACE);
        let mut first = slots.acquire().await;
        tokio::time::advance(GRACE / 2).await;
        let mut second = slots.acquire().await;
        let start = Instant::now();
        let third = slots.acquire().await;
        assert_eq!(start.elapsed(), GRACE / 2);
        first.evicted().await;
        assert!(
            tokio::time::timeout(GRACE * 9, second.evicted()).await.is_err(),
            "no connection needs its slot"
        );
        second.restart_grace();
        let (mut third, start) = (third, Instant::now());
        let fourth = slots.acquire().await;
        third.evicted().await;
        assert_eq!(
            start.elapsed(),
            Duration::ZERO,
            "the third exceeded its grace period, the second restarted it"
        );
        drop((first, second, third, fourth));
        assert!(slots.lock().slots.is_empty());
    }
}
