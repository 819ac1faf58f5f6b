//! Limits the handshakes in progress on the listeners of a pod or gateway: a connection that has been accepted waits in its
//! own task until it has a slot, and may lose it to another one. [`HandshakeQueue`] decides; this hands its decisions to
//! the tasks. Knows no protocol.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

use super::handshake_queue::{Action, HandshakeQueue, Id};
use super::source::Source;

/// Handshakes that may wait, for each slot.
const WAITING_PER_SLOT: usize = 2;

/// The slots of one pod or gateway.
#[derive(Debug)]
pub(crate) struct HandshakeSlots {
    limit: usize,
    state: Mutex<SlotState>,
    /// The next decision has to be made earlier than [`SlotState::armed`].
    earlier: Notify,
}

#[derive(Debug)]
struct SlotState {
    queue: HandshakeQueue,
    /// Connections that wait; a dropped sender refuses one.
    waiting: HashMap<Id, oneshot::Sender<()>>,
    /// Connections with a slot; a dropped sender evicts one.
    slots: HashMap<Id, oneshot::Sender<()>>,
    /// When the clock makes the next decision.
    armed: Option<Instant>,
}

/// One slot; released when dropped.
#[derive(Debug)]
pub(crate) struct SlotPermit {
    _request: Request,
    evicted: oneshot::Receiver<()>,
}

/// Too many connections wait for a slot, and most of them are of this client's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

/// A connection in the queue, until dropped.
#[derive(Debug)]
struct Request {
    id: Id,
    source: Source,
    slots: Arc<HandshakeSlots>,
}

// === impl HandshakeSlots ===

impl HandshakeSlots {
    /// `limit` slots; a handshake of a client within its share is not evicted before the age `grace`.
    pub(crate) fn new(limit: usize, grace: Duration) -> Arc<Self> {
        let queue = HandshakeQueue::new(limit, limit.saturating_mul(WAITING_PER_SLOT), grace);
        let (waiting, slots) = (HashMap::new(), HashMap::new());
        let state = SlotState { queue, waiting, slots, armed: None };
        Arc::new(Self { limit, state: Mutex::new(state), earlier: Notify::new() })
    }

    /// Number of slots.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Waits for a slot. Its grace period starts when it is acquired.
    pub(crate) async fn acquire(self: &Arc<Self>, client: IpAddr) -> Result<SlotPermit, Refused> {
        let source = Source::of(client);
        let (decide, decided) = oneshot::channel();
        let (evict, evicted) = oneshot::channel();
        let request = {
            let mut state = self.lock();
            let id = state.queue.request(source);
            state.waiting.insert(id, decide);
            state.slots.insert(id, evict);
            let request = Request { id, source, slots: Arc::clone(self) };
            self.advance(state);
            request
        };
        decided.await.map_err(|_| Refused)?;
        Ok(SlotPermit { _request: request, evicted })
    }

    /// Makes the decisions that only time brings. Never completes; one call for all clones.
    pub(crate) async fn run_clock(&self) {
        loop {
            let armed = {
                let mut state = self.lock();
                state.armed = state.queue.due();
                state.armed
            };
            let due = async {
                match armed {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {
                    let mut state = self.lock();
                    state.armed = None;
                    self.advance(state);
                }
                () = self.earlier.notified() => {}
            }
        }
    }

    fn advance(&self, mut state: MutexGuard<'_, SlotState>) {
        for action in state.queue.advance(Instant::now()) {
            match action {
                // Fails if the connection has ended at this moment.
                Action::Grant(id) => drop(state.waiting.remove(&id).map(|waiting| waiting.send(()))),
                Action::Evict(id) => drop(state.slots.remove(&id)),
                Action::Refuse(id) => drop((state.waiting.remove(&id), state.slots.remove(&id))),
            }
        }
        let due = state.queue.due();
        if due.is_some_and(|due| state.armed.is_none_or(|armed| due < armed)) {
            self.earlier.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, SlotState> {
        // A poisoned lock is still consistent: no code panics between two related changes.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl SlotPermit ===

impl SlotPermit {
    /// Resolves when this handshake is evicted for another connection.
    pub(crate) async fn evicted(&mut self) {
        // The sender never sends: it is dropped.
        let _ = (&mut self.evicted).await;
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let mut state = self.slots.lock();
        state.waiting.remove(&self.id);
        state.slots.remove(&self.id);
        state.queue.release(self.source, self.id);
        self.slots.advance(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_rt::task::Tasks;

    const GRACE: Duration = Duration::from_secs(1);

    fn client(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn slots(limit: usize) -> (Arc<HandshakeSlots>, Tasks) {
        let (slots, tasks) = (HandshakeSlots::new(limit, GRACE), Tasks::new("clock"));
        let clock = Arc::clone(&slots);
        tasks.spawn("clock", async move { clock.run_clock().await });
        (slots, tasks)
    }

    #[tokio::test(start_paused = true)]
    async fn a_released_slot_is_acquired_at_once() {
        let (slots, _clock) = slots(2);
        let (first, _second) =
            (slots.acquire(client(1)).await.unwrap(), slots.acquire(client(1)).await.unwrap());
        let start = Instant::now();
        let release = async {
            tokio::task::yield_now().await;
            drop(first);
        };
        let (third, ()) = tokio::join!(slots.acquire(client(1)), release);
        assert!(third.is_ok());
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(slots.lock().slots.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_connection_evicts_the_oldest_handshake_after_its_grace_period() {
        let (slots, _clock) = slots(2);
        let mut first = slots.acquire(client(1)).await.unwrap();
        tokio::time::advance(GRACE / 2).await;
        let mut second = slots.acquire(client(2)).await.unwrap();
        let start = Instant::now();
        let third = slots.acquire(client(3)).await.unwrap();
        assert_eq!(start.elapsed(), GRACE / 2);
        first.evicted().await;
        let evicted = tokio::time::timeout(GRACE * 9, second.evicted()).await;
        assert!(evicted.is_err(), "no connection needs its slot");
        drop((first, second, third));
        let state = slots.lock();
        assert!(state.slots.is_empty() && state.waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_does_not_wait_any_longer_gets_no_slot() {
        let (slots, _clock) = slots(1);
        let first = slots.acquire(client(1)).await.unwrap();
        let waits = tokio::time::timeout(GRACE / 2, slots.acquire(client(2))).await;
        assert!(waits.is_err());
        drop(first);
        let state = slots.lock();
        assert!(state.slots.is_empty() && state.waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn connections_beyond_the_room_are_refused() {
        let (slots, _clock) = slots(1);
        let _held = slots.acquire(client(1)).await.unwrap();
        let tasks = Tasks::new("waiting");
        for _ in 0..WAITING_PER_SLOT {
            let slots = Arc::clone(&slots);
            tasks.spawn("waits", async move { drop(slots.acquire(client(1)).await) });
        }
        tokio::task::yield_now().await;
        let start = Instant::now();
        assert_eq!(slots.acquire(client(1)).await.err(), Some(Refused));
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
