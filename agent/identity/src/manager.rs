//! The certificates of this node's identities: a handle that the data path reads, and the task that keeps them fresh.
//!
//! Reading takes no lock: the worker publishes an immutable map after every change. Whoever asks for what is not there
//! yet waits for the worker's answer.

mod worker;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use isthmus_model::SpiffeId;
use isthmus_rt::BoxFuture;
use isthmus_rt::task::Tasks;
use tokio::sync::{mpsc, oneshot};

use crate::cert::Certificate;
use crate::metrics::Metrics;
use crate::schedule::Limits;
use crate::source::{CertSource, FetchError, Signer};
use crate::trust::Trust;
use crate::{Clock, system_clock};

/// Settings of the manager.
#[derive(Clone)]
pub struct Config {
    /// Lifetime to ask for.
    pub ttl: Duration,
    /// How long one signing request may take.
    pub deadline: Duration,
    /// Limits of the schedule.
    pub limits: Limits,
    /// Refuse a leaf whose first identity is not the requested one. On wherever one agent serves many identities.
    pub check_identity: bool,
    /// Time of day.
    pub clock: Clock,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// What peers are judged by.
    pub trust: Trust,
}

/// Keeps a certificate for each identity that was asked for. Clones share it.
#[derive(Clone)]
pub struct Manager {
    commands: mpsc::UnboundedSender<Command>,
    published: Published,
    clock: Clock,
}

/// An identity and what is known of its certificate.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Whose.
    pub identity: SpiffeId,
    /// State.
    pub state: State,
}

/// State of one identity's certificate. Its `Display` is the config dump's `state`.
#[derive(Debug, Clone)]
pub enum State {
    /// Nothing was signed yet.
    Initializing,
    /// Here it is.
    Available(Arc<Certificate>),
    /// The last attempt failed, and there is no valid one from before.
    Unavailable(String),
}

/// What the readers see.
type Published = Arc<ArcSwap<HashMap<SpiffeId, State>>>;
/// Where a waiting reader gets its answer.
type Reply = oneshot::Sender<Result<Arc<Certificate>, FetchError>>;

enum Command {
    Want(SpiffeId, Reply),
    Prefetch(SpiffeId),
    Forget(SpiffeId),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(24 * 60 * 60),
            deadline: Duration::from_secs(10),
            limits: Limits::default(),
            check_identity: true,
            clock: system_clock(),
            metrics: Arc::default(),
            trust: Trust::default(),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Initializing => f.write_str("Initializing"),
            Self::Available(_) => f.write_str("Available"),
            Self::Unavailable(reason) => write!(f, "Unavailable: {reason}"),
        }
    }
}

// === impl Manager ===

impl Manager {
    /// Starts the worker in `tasks`.
    #[must_use]
    pub fn new(signer: Arc<dyn Signer>, config: Config, tasks: &Tasks) -> Self {
        let (commands, inbox) = mpsc::unbounded_channel();
        let published = Published::default();
        let clock = Arc::clone(&config.clock);
        let worker = worker::Worker::new(signer, config, Arc::clone(&published));
        tasks.spawn("certificates", worker.run(inbox));
        Self { commands, published, clock }
    }

    /// Makes sure that there will soon be a certificate for `id`.
    pub fn prefetch(&self, id: &SpiffeId) {
        // Only a worker that was shut down does not listen.
        let _ = self.commands.send(Command::Prefetch(id.clone()));
    }

    /// Drops the certificate of an identity that has no workload on this node any more.
    pub fn forget(&self, id: &SpiffeId) {
        let _ = self.commands.send(Command::Forget(id.clone()));
    }

    /// Every identity and its state, sorted, for the config dump.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Entry> {
        let published = self.published.load();
        let entry = |(identity, state): (&SpiffeId, &State)| Entry {
            identity: identity.clone(),
            state: state.clone(),
        };
        let mut entries: Vec<Entry> = published.iter().map(entry).collect();
        entries.sort_by(|a, b| a.identity.cmp(&b.identity));
        entries
    }

    async fn fetch(&self, id: SpiffeId) -> Result<Arc<Certificate>, FetchError> {
        if let Some(State::Available(certificate)) = self.published.load().get(&id)
            && certificate.is_valid_at((self.clock)())
        {
            return Ok(Arc::clone(certificate));
        }
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Want(id.clone(), reply)).is_err() {
            return Err(FetchError::Stopped(id));
        }
        answer.await.unwrap_or(Err(FetchError::Stopped(id)))
    }
}

impl CertSource for Manager {
    fn certificate(&self, id: &SpiffeId) -> BoxFuture<'_, Result<Arc<Certificate>, FetchError>> {
        Box::pin(self.fetch(id.clone()))
    }
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager").field("identities", &self.published.load().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
