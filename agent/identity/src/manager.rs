//! The certificates of this node's identities: a handle that the data path reads, and the worker that renews them.
//!
//! Reading takes no lock: the worker publishes an immutable map after every change. A reader whose identity has no
//! certificate yet sends a command to the worker and waits for its reply.

mod config;
mod outage;
mod state;
mod worker;

use std::fmt;
use std::sync::Arc;

use isthmus_model::SpiffeId;
use isthmus_rt::BoxFuture;
use isthmus_rt::task::Tasks;
use tokio::sync::{mpsc, oneshot};

pub use self::config::Config;
use self::state::PublishedStates;
pub use self::state::{CertState, IdentityEntry};
use self::worker::{Command, Worker};
use crate::cert::Certificate;
use crate::clock::Clock;
use crate::source::{CertSource, FetchError, Signer};

/// Keeps a valid certificate for every requested identity. Clones share it.
#[derive(Clone)]
pub struct Manager {
    commands: mpsc::UnboundedSender<Command>,
    published: PublishedStates,
    clock: Clock,
}

// === impl Manager ===

impl Manager {
    /// Starts the worker in `tasks`.
    #[must_use]
    pub fn new(signer: Arc<dyn Signer>, config: Config, tasks: &Tasks) -> Self {
        let (commands, inbox) = mpsc::unbounded_channel();
        let published = PublishedStates::default();
        let clock = Arc::clone(&config.clock);
        let worker = Worker::new(signer, config, Arc::clone(&published));
        tasks.spawn("certificates", worker.run(inbox));
        Self { commands, published, clock }
    }

    /// Requests a certificate for `id` before a connection needs it.
    pub fn prefetch(&self, id: &SpiffeId) {
        // Fails only after the worker was shut down.
        let _ = self.commands.send(Command::Prefetch(id.clone()));
    }

    /// Drops the certificate of an identity whose last workload left this node.
    pub fn forget(&self, id: &SpiffeId) {
        let _ = self.commands.send(Command::Forget(id.clone()));
    }

    /// Every identity and the state of its certificate, sorted, for the config dump.
    #[must_use]
    pub fn snapshot(&self) -> Vec<IdentityEntry> {
        let published = self.published.load();
        let entry = |(identity, state): (&SpiffeId, &CertState)| IdentityEntry {
            identity: identity.clone(),
            state: state.clone(),
        };
        let mut entries: Vec<IdentityEntry> = published.iter().map(entry).collect();
        entries.sort_by(|a, b| a.identity.cmp(&b.identity));
        entries
    }

    async fn fetch(&self, id: SpiffeId) -> Result<Arc<Certificate>, FetchError> {
        if let Some(CertState::Available(certificate)) = self.published.load().get(&id)
            && certificate.is_valid_at((self.clock)())
        {
            return Ok(Arc::clone(certificate));
        }
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Fetch(id.clone(), reply)).is_err() {
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
