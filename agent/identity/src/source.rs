//! The two seams of this crate: where certificates are asked for, and who signs them.

use std::sync::Arc;
use std::time::Duration;

use isthmus_model::SpiffeId;
use isthmus_rt::BoxFuture;

use crate::cert::{CertError, Certificate};

/// Hands out certificates for identities that live on this node.
pub trait CertSource: Send + Sync {
    /// A valid certificate for `id`; waits while the first one is being signed, fails fast while there is none.
    fn certificate(&self, id: &SpiffeId) -> BoxFuture<'_, Result<Arc<Certificate>, FetchError>>;
}

/// Turns a signing request into a certificate chain.
pub trait Signer: Send + Sync {
    /// Signs `csr_pem` for `id`, valid for about `ttl`. The chain is PEM, leaf first, **the roots last**; its last
    /// element may hold several certificates.
    fn sign(
        &self,
        id: &SpiffeId,
        csr_pem: String,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<Vec<String>, SignError>>;
}

/// Why there is no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The last attempt failed and there is no valid older one.
    #[error("no certificate for {identity}: {reason}")]
    Unavailable {
        /// Whose.
        identity: SpiffeId,
        /// What went wrong.
        reason: String,
    },
    /// The identity left this node while somebody waited.
    #[error("no certificate for {0}: it has no workload on this node any more")]
    Forgotten(SpiffeId),
    /// The manager was shut down.
    #[error("no certificate for {0}: shutting down")]
    Stopped(SpiffeId),
}

/// Why a certificate could not be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// No key or request could be made.
    #[error("{0}")]
    Request(String),
    /// The CA could not be reached, or the channel to it broke.
    #[error("CA at {address} cannot be reached: {reason}")]
    Unreachable {
        /// Where it should be.
        address: String,
        /// What went wrong.
        reason: String,
    },
    /// The CA answered with an error.
    #[error("CA refused: {code}: {message}")]
    Refused {
        /// gRPC status code.
        code: String,
        /// Its message.
        message: String,
    },
    /// The CA did not answer in time.
    #[error("CA did not answer within {0:?}")]
    Deadline(Duration),
    /// The answer makes no certificate.
    #[error("bad answer of the CA: {0}")]
    BadAnswer(#[from] CertError),
}
