//! What is known of each identity's certificate, as the worker publishes it and readers see it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use isthmus_model::SpiffeId;

use crate::cert::Certificate;

/// An identity and the state of its certificate.
#[derive(Debug, Clone)]
pub struct IdentityEntry {
    /// The identity.
    pub identity: SpiffeId,
    /// The state of its certificate.
    pub state: CertState,
}

/// State of one identity's certificate. Its `Display` is the config dump's `state`.
#[derive(Debug, Clone)]
pub enum CertState {
    /// No signing request has completed yet.
    Initializing,
    /// The certificate in use.
    Available(Arc<Certificate>),
    /// The last signing request failed, and there is no valid certificate from before.
    Unavailable(String),
}

/// Immutable maps from the worker to the readers, replaced after every change.
pub(super) type PublishedStates = Arc<ArcSwap<HashMap<SpiffeId, CertState>>>;

impl fmt::Display for CertState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Initializing => f.write_str("Initializing"),
            Self::Available(_) => f.write_str("Available"),
            Self::Unavailable(reason) => write!(f, "Unavailable: {reason}"),
        }
    }
}
