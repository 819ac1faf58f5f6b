//! Tunnels shared by the connections of one pod: a caller uses a tunnel with room, waits for a dial under way, or dials.
//!
//! No lock is held across a dial. A dial belongs to the caller that makes it: when that caller gives up, one that waits
//! takes over, so nobody is left behind, and everyone fails at its own deadline at the latest. Only the tunnel that is
//! added because the others are busy is dialled on nobody's time. The ordering is in `entry`; here are the clock, the
//! wake-ups and the map.

mod entry;
mod slot;

use std::error::Error;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Weak};
use std::time::Duration;

use isthmus_rt::BoxFuture;
use isthmus_rt::task::Tasks;
use papaya::HashMap;
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::entry::{Checkout, Spread};
use self::slot::{Dial, Grant, Lease, Slot};
use crate::client::Tunnel;
use crate::{Head, OpenError, ResponseHead, Stream};

/// What a pool keeps to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// A tunnel without streams is closed after this long. 5 min.
    pub idle: Duration,
    /// Tunnels without streams that are kept; beyond it the longest unused are closed. 500.
    pub max_idle: usize,
    /// How long a caller waits for a tunnel, its own dial included. 10 s.
    pub deadline: Duration,
    /// Streams a new tunnel is expected to carry. 100, as [`crate::Settings::client_max_streams`].
    pub streams: usize,
    /// Tunnels to one key up to which load is a reason for another; beyond it one is opened only when all are full. A
    /// tunnel's work is done on one core, so more of them than there are threads to run them are of no use. 1: only the
    /// pool's owner knows how many there are.
    pub tunnels: usize,
    /// A tunnel with as many streams is busy. 25.
    pub busy_streams: usize,
    /// A tunnel that takes as many thousandths of a core is busy, too. 500.
    pub busy_share: u64,
}

impl Default for Config {
    fn default() -> Self {
        let (idle, deadline) = (Duration::from_secs(300), Duration::from_secs(10));
        let (tunnels, busy_streams, busy_share) = (1, 25, 500);
        Self { idle, max_idle: 500, deadline, streams: 100, tunnels, busy_streams, busy_share }
    }
}

impl Config {
    fn spread(&self) -> Spread {
        Spread {
            per_tunnel: self.streams,
            tunnels: self.tunnels,
            calm_streams: self.busy_streams,
            calm_share: self.busy_share,
        }
    }
}

/// Makes the tunnel to a key.
pub trait Connect<K> {
    /// Dials, up to and including [`crate::client::handshake`]. May be dropped at any point, and may outlive the caller
    /// for whom it was begun.
    fn connect(&self, key: &K) -> BoxFuture<'static, Result<Tunnel, ConnectFailure>>;
}

/// Why a dial failed. Shared by all callers that waited for it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{error}")]
pub struct ConnectFailure {
    /// How far it came.
    pub stage: Stage,
    /// What happened.
    #[source]
    pub error: Arc<dyn Error + Send + Sync>,
}

/// How far a dial came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The certificate to dial with could not be had.
    Identity,
    /// The peer did not answer in time: perhaps a network policy forbids the port.
    Timeout,
    /// The peer could not be reached.
    Connect,
    /// The TLS handshake failed.
    Tls,
    /// The HTTP/2 handshake failed.
    Handshake,
}

impl ConnectFailure {
    /// A failure at a stage.
    pub fn new(stage: Stage, error: impl Error + Send + Sync + 'static) -> Self {
        Self { stage, error: Arc::new(error) }
    }
}

/// Why no stream was opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PoolError {
    /// The dial failed.
    #[error(transparent)]
    Connect(ConnectFailure),
    /// No tunnel was had in time.
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
    /// Whether its tunnel was there already, or was dialled by another caller.
    pub reused: bool,
    /// Its tunnel.
    pub tunnel: Tunnel,
}

/// A pool of tunnels by key. Clones share it; its tunnels close when the last clone is dropped and their streams end.
pub struct Pool<K>(Arc<Shared<K>>);

struct Shared<K> {
    config: Config,
    slots: HashMap<K, Arc<Slot>>,
    /// Dials that nobody waits for.
    tasks: Tasks,
}

/// Tries with different tunnels before an error is the caller's.
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

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Pool<K> {
    /// An empty pool. Its sweeper, and the dials of tunnels that nobody waits for, run in `tasks`.
    #[must_use]
    pub fn new(config: Config, tasks: &Tasks) -> Self {
        let shared = Arc::new(Shared { config, slots: HashMap::new(), tasks: tasks.clone() });
        tasks.spawn("pool sweeper", sweep(Arc::downgrade(&shared), shared.config.idle));
        Self(shared)
    }

    /// Opens a stream to `key`. Errors that another tunnel may not have are tried on another tunnel first. The deadline
    /// is for getting a tunnel; the peer's answer to the CONNECT is waited for without one.
    ///
    /// # Errors
    /// When no tunnel was had, or the peer did not accept the CONNECT.
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
                    // A tunnel of our own making that was lost at once says something about the peer.
                    let hopeless = !reused && matches!(error, OpenError::Lost(_));
                    if hopeless || !error.is_retryable() || attempt == ATTEMPTS {
                        return Err(error.into());
                    }
                    tracing::debug!(%error, attempt, "trying another tunnel");
                }
            }
            attempt += 1;
        }
    }

    /// Tunnels in the pool.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.slots.pin().values().map(|slot| slot.lock().members().len()).sum()
    }

    /// Whether there is no tunnel.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Opens no more streams on any tunnel there is; each closes with its last stream.
    pub fn close_gracefully(&self) {
        for slot in self.0.slots.pin().values() {
            let mut entry = slot.lock();
            entry.members().iter().for_each(Tunnel::close_gracefully);
            entry.remove(|_| true);
        }
    }

    async fn lease(&self, key: &K, connect: &impl Connect<K>) -> Result<Lease, ConnectFailure> {
        loop {
            let slot = self.0.slot(key);
            let mut told = None;
            let found = slot.lock().checkout(Instant::now(), || {
                let (waiter, waiting) = oneshot::channel();
                told = Some(waiting);
                waiter
            });
            let granted = match (found, told) {
                (Checkout::Use(tunnel, permit), _) => return Ok(Lease { tunnel, permit, reused: true }),
                (Checkout::Grow(tunnel, permit), _) => {
                    self.grow(slot, connect.connect(key));
                    return Ok(Lease { tunnel, permit, reused: true });
                }
                (Checkout::Dial, _) => Grant::Dial(Dial(Some(slot))),
                (Checkout::Wait, Some(waiting)) => match waiting.await {
                    Ok(granted) => granted,
                    Err(_) => continue,
                },
                (Checkout::Wait | Checkout::Retired, _) => continue,
            };
            match granted {
                Grant::Use(tunnel, permit) => return Ok(Lease { tunnel, permit, reused: true }),
                Grant::Failed(failure) => return Err(failure),
                Grant::Dial(dial) => {
                    let lease = dial.done(connect.connect(key).await)?;
                    self.0.trim();
                    return Ok(lease);
                }
            }
        }
    }

    /// Dials one more tunnel because those there are have much to do. Nobody waits for it.
    fn grow(&self, slot: Arc<Slot>, dial: BoxFuture<'static, Result<Tunnel, ConnectFailure>>) {
        let (pool, deadline) = (Arc::downgrade(&self.0), self.0.config.deadline);
        let duty = Dial(Some(Arc::clone(&slot)));
        self.0.tasks.spawn("tunnel for load", async move {
            let made = tokio::time::timeout(deadline, dial).await;
            let late = |_| ConnectFailure::new(Stage::Timeout, PoolError::Deadline(deadline));
            // Its first stream's place is given up at once.
            match duty.done(made.unwrap_or_else(|passed| Err(late(passed)))) {
                Ok(lease) => tracing::debug!(busy = lease.tunnel.busy(), "one more tunnel for load"),
                Err(error) => {
                    tracing::debug!(%error, "no more tunnel for load");
                    slot.lock().cannot_grow(Instant::now());
                }
            }
            if let Some(pool) = pool.upgrade() {
                pool.trim();
            }
        });
    }
}

// === impl Shared ===

impl<K: Hash + Eq + Clone> Shared<K> {
    fn slot(&self, key: &K) -> Arc<Slot> {
        let slots = self.slots.pin();
        let fresh = || Arc::new(Slot::new(self.config.spread()));
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
            // Closing a tunnel takes its lock; the entry's is not held for it.
            drop(gone);
        }
    }

    /// Closes the longest unused tunnels when too many are unused.
    fn trim(&self) {
        let slots = self.slots.pin();
        let mut idle: Vec<(Instant, Arc<Slot>, Tunnel)> = Vec::new();
        for slot in slots.values() {
            let entry = slot.lock();
            let unused = entry.members().iter().filter_map(|tunnel| Some((tunnel.idle_since()?, tunnel)));
            idle.extend(unused.map(|(since, tunnel)| (since, Arc::clone(slot), tunnel.clone())));
        }
        let excess = idle.len().saturating_sub(self.config.max_idle);
        idle.sort_by_key(|(since, ..)| *since);
        for (_, slot, tunnel) in idle.into_iter().take(excess) {
            slot.lock().remove(|member| member.is_same(&tunnel));
        }
    }
}

/// Lets go of what is unused, for as long as there is a pool.
async fn sweep<K: Hash + Eq + Clone>(pool: Weak<Shared<K>>, idle: Duration) {
    let mut tick = tokio::time::interval((idle / 10).max(Duration::from_millis(1)));
    loop {
        tick.tick().await;
        let Some(pool) = pool.upgrade() else { return };
        pool.expire(Instant::now());
    }
}
