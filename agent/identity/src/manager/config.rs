//! Settings of the certificate manager.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, system_clock};
use crate::metrics::Metrics;
use crate::schedule::Limits;
use crate::trust::Trust;

/// Settings of the manager.
#[derive(Clone)]
pub struct Config {
    /// Lifetime to request for each certificate. 24 h.
    pub ttl: Duration,
    /// How long one signing request may take. 10 s.
    pub deadline: Duration,
    /// Concurrency, retries and renewal of signing requests.
    pub limits: Limits,
    /// Whether to refuse a leaf whose first identity is not the requested one. Necessary wherever one agent serves many
    /// identities.
    pub check_identity: bool,
    /// Time of day.
    pub clock: Clock,
    /// Metrics of signing.
    pub metrics: Arc<Metrics>,
    /// Trust rules for verifying peers.
    pub trust: Trust,
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
