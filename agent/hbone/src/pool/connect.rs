//! How the pool dials: what it requires of its user, and what a failed dial reports.

use std::error::Error;
use std::sync::Arc;

use isthmus_rt::BoxFuture;

use crate::client::Tunnel;

/// Dials the tunnel to a key.
pub trait Connect<K> {
    /// Dials, up to and including [`crate::client::start`]. The future may be dropped at any point, and may outlive
    /// the caller for which it was started.
    fn connect(&self, key: &K) -> BoxFuture<'static, Result<Tunnel, ConnectFailure>>;
}

/// Why a dial failed. Shared by all callers that waited for it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{error}")]
pub struct ConnectFailure {
    /// The stage that failed.
    pub stage: Stage,
    /// The error of that stage.
    #[source]
    pub error: Arc<dyn Error + Send + Sync>,
}

/// Stages of a dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Getting our own certificate.
    Identity,
    /// TCP, without an answer in time: a NetworkPolicy may be blocking the port.
    Timeout,
    /// TCP.
    Connect,
    /// The TLS handshake.
    Tls,
    /// The HTTP/2 handshake.
    Handshake,
}

impl ConnectFailure {
    /// A failure at a stage.
    pub fn new(stage: Stage, error: impl Error + Send + Sync + 'static) -> Self {
        Self { stage, error: Arc::new(error) }
    }
}
