//! A pool of client tunnels by key: a caller uses a tunnel with room, waits for a dial in progress, or dials.
//!
//! No lock is held during a dial. A dial belongs to the caller that makes it: when that caller gives up, a waiting one takes
//! over, so that no waiter is stranded, and every caller fails at its own deadline at the latest. The ordering is decided in
//! `entry`; here are the clock, the wake-ups and the map.
//!
//! A pool belongs to one thread, so a tunnel more for a key that has one with room would be of no use.

mod connect;
mod entry;
mod slot;

use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Weak};
use std::time::Duration;

use isthmus_rt::task::Tasks;
use papaya::HashMap;
use tokio::sync::oneshot;
use tokio::time::Instant;

pub use self::connect::{Connect, ConnectFailure, Stage};
use self::entry::{Checkout, LoadPolicy};
use self::slot::{DialGuard, Lease, Slot, WaitOutcome};
use crate::client::Tunnel;
use crate::error::OpenError;
use crate::head::{Head, ResponseHead};
use crate::stream::Stream;

/// Settings of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// A tunnel without streams is closed after this long. 5 min.
    pub idle: Duration,
    /// Tunnels without streams that are kept; beyond it the longest idle are closed. 500.
    pub max_idle: usize,
    /// How long a caller waits for a tunnel, its own dial included. 10 s.
    pub deadline: Duration,
    /// Streams that a new tunnel is expected to carry. 100, as [`crate::Settings::client_max_streams`].
    pub streams: usize,
    /// Streams up to which the oldest of several tunnels is preferred, so that the others expire. 25.
    pub busy_streams: usize,
}

impl Default for Config {
    fn default() -> Self {
        let (idle, deadline) = (Duration::from_secs(300), Duration::from_secs(10));
        Self { idle, max_idle: 500, deadline, streams: 100, busy_streams: 25 }
    }
}

impl Config {
    fn load(&self) -> LoadPolicy {
        LoadPolicy { streams_per_tunnel: self.streams, busy_streams: self.busy_streams }
    }
}

/// Why no stream was opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PoolError {
    /// The dial failed.
    #[error(transparent)]
    Connect(ConnectFailure),
    /// There was no tunnel in time.
    #[error("no tunnel within {0:?}")]
    Deadline(Duration),
    /// The CONNECT failed.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// A stream from the pool.
#[derive(Debug)]
pub struct Opened {
    /// The stream.
    pub stream: Stream,
    /// The peer's answer.
    pub response: ResponseHead,
    /// Whether its tunnel existed already, or was dialled by another caller.
    pub reused: bool,
    /// Its tunnel.
    pub tunnel: Tunnel,
}

/// A pool of tunnels by key. Clones share it; its tunnels close when the last clone is dropped and their streams end.
pub struct Pool<K>(Arc<PoolState<K>>);

struct PoolState<K> {
    config: Config,
    slots: HashMap<K, Arc<Slot>>,
}

/// Attempts on different tunnels before an error is returned to the caller.
const ATTEMPTS: usize = 3;

impl<K> Clone for Pool<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K> fmt::Debug for Pool<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("config", &self.0.config).finish_non_exhaustive()
    }
}

// === impl Pool ===

impl<K: Hash + Eq + Clone + fmt::Debug + Send + Sync + 'static> Pool<K> {
    /// An empty pool. Its sweeper runs in `tasks`.
    #[must_use]
    pub fn new(config: Config, tasks: &Tasks) -> Self {
        let shared = Arc::new(PoolState { config, slots: HashMap::new() });
        tasks.spawn("pool sweeper", sweep(Arc::downgrade(&shared), shared.config.idle));
        Self(shared)
    }

    /// Opens a stream to `key`. Errors that concern one tunnel are retried on another. The deadline applies to getting a
    /// tunnel; the peer's answer to the CONNECT is awaited without one.
    ///
    /// # Errors
    /// When there is no tunnel, or the peer did not accept the CONNECT.
    pub async fn open(&self, key: &K, head: &Head, connect: &impl Connect<K>) -> Result<Opened, PoolError> {
        let mut attempt = 1;
        loop {
            let deadline = self.0.config.deadline;
            let lease = tokio::time::timeout(deadline, self.lease(key, connect))
                .await
                .map_err(|_| PoolError::Deadline(deadline))?
                .map_err(PoolError::Connect)?;
            let Lease { tunnel, permit, reused } = lease;
            match tunnel.open_reserved(permit, head).await {
                Ok((stream, response)) => return Ok(Opened { stream, response, reused, tunnel }),
                Err(error) => {
                    if error == OpenError::Refused {
                        tunnel.lower_limit();
                    }
                    // A tunnel that was lost right after we dialled it says something about the peer, not the tunnel.
                    let lost_at_once = !reused && matches!(error, OpenError::Lost(_));
                    if lost_at_once || !error.is_retryable() || attempt == ATTEMPTS {
                        return Err(error.into());
                    }
                    tracing::debug!(?key, target = %head.authority, %error, attempt, "CONNECT failed, retrying on another tunnel");
                }
            }
            attempt += 1;
        }
    }

    /// Number of tunnels in the pool.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.slots.pin().values().map(|slot| slot.lock().tunnels().len()).sum()
    }

    /// Whether there is no tunnel.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a tunnel that was not dialled for this pool.
    pub fn insert(&self, key: &K, tunnel: &Tunnel) {
        loop {
            let slot = self.0.slot(key);
            if slot.lock().add(tunnel.clone()) {
                return slot.serve_waiters();
            }
        }
    }

    /// The tunnels in the pool that have not ended, with their keys.
    #[must_use]
    pub fn tunnels(&self) -> Vec<(K, Tunnel)> {
        let slots = self.0.slots.pin();
        let mut all = Vec::new();
        for (key, slot) in &slots {
            let entry = slot.lock();
            let open = entry.tunnels().iter().filter(|tunnel| tunnel.ended().is_none());
            all.extend(open.map(|tunnel| (key.clone(), tunnel.clone())));
        }
        all
    }

    /// Opens no more streams on the tunnels in the pool; each closes with its last stream.
    pub fn close_gracefully(&self) {
        for slot in self.0.slots.pin().values() {
            let mut entry = slot.lock();
            entry.tunnels().iter().for_each(Tunnel::close_gracefully);
            entry.remove(|_| true);
        }
    }

    async fn lease(&self, key: &K, connect: &impl Connect<K>) -> Result<Lease, ConnectFailure> {
        loop {
            let slot = self.0.slot(key);
            let mut queued = None;
            let found = slot.lock().checkout(|| {
                let (waiter, outcome) = oneshot::channel();
                queued = Some(outcome);
                waiter
            });
            let outcome = match (found, queued) {
                (Checkout::Use(tunnel, permit), _) => return Ok(Lease { tunnel, permit, reused: true }),
                (Checkout::Dial, _) => WaitOutcome::Dial(DialGuard::new(slot)),
                (Checkout::Wait, Some(outcome)) => match outcome.await {
                    Ok(outcome) => outcome,
                    Err(_) => continue,
                },
                (Checkout::Wait | Checkout::Retired, _) => continue,
            };
            match outcome {
                WaitOutcome::Use(tunnel, permit) => return Ok(Lease { tunnel, permit, reused: true }),
                WaitOutcome::Failed(failure) => return Err(failure),
                WaitOutcome::Dial(dial) => {
                    let lease = dial.complete(connect.connect(key).await)?;
                    self.0.trim();
                    return Ok(lease);
                }
            }
        }
    }
}

// === impl PoolState ===

impl<K: Hash + Eq + Clone> PoolState<K> {
    fn slot(&self, key: &K) -> Arc<Slot> {
        let slots = self.slots.pin();
        let fresh = || Arc::new(Slot::new(self.config.load()));
        let slot = slots.get(key).unwrap_or_else(|| slots.get_or_insert_with(key.clone(), fresh));
        Arc::clone(slot)
    }

    fn expire(&self, now: Instant) {
        let slots = self.slots.pin();
        for (key, slot) in &slots {
            let mut entry = slot.lock();
            let gone = entry.expire(now, self.config.idle);
            if entry.retire() {
                slots.remove(key);
            }
            drop(entry);
            // Dropping a tunnel takes the tunnel's lock: not under the entry's.
            drop(gone);
        }
    }

    /// Closes the longest idle tunnels when too many are idle.
    fn trim(&self) {
        let slots = self.slots.pin();
        let mut idle: Vec<(Instant, Arc<Slot>, Tunnel)> = Vec::new();
        for slot in slots.values() {
            let entry = slot.lock();
            let unused = entry.tunnels().iter().filter_map(|tunnel| Some((tunnel.idle_since()?, tunnel)));
            idle.extend(unused.map(|(since, tunnel)| (since, Arc::clone(slot), tunnel.clone())));
        }
        let excess = idle.len().saturating_sub(self.config.max_idle);
        idle.sort_by_key(|(since, ..)| *since);
        for (_, slot, tunnel) in idle.into_iter().take(excess) {
            slot.lock().remove(|other| other.is_same(&tunnel));
        }
    }
}

/// Closes idle tunnels, until the pool is dropped.
async fn sweep<K: Hash + Eq + Clone>(pool: Weak<PoolState<K>>, idle: Duration) {
    let mut tick = tokio::time::interval((idle / 10).max(Duration::from_millis(1)));
    loop {
        tick.tick().await;
        let Some(pool) = pool.upgrade() else { return };
        pool.expire(Instant::now());
    }
}
