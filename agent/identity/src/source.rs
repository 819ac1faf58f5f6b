//! The two seams of this crate: [`CertSource`], which the data path asks for certificates, and [`Signer`], which turns a
//! CSR into one.

use std::sync::Arc;
use std::time::Duration;

use isthmus_model::SpiffeId;
use isthmus_rt::BoxFuture;

use crate::cert::{CertError, Certificate};
use crate::csr::CsrError;

/// Hands out certificates for the identities of workloads on this node.
pub trait CertSource: Send + Sync {
    /// A valid certificate for `id`. Waits while the first one is being signed; fails at once after signing failed, until
    /// a retry succeeds.
    fn certificate(&self, id: &SpiffeId) -> BoxFuture<'_, Result<Arc<Certificate>, FetchError>>;
}

/// Signs certificate requests.
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
    /// The last attempt to have one signed failed, and there is no valid older one.
    #[error("no certificate for {identity}: {reason}")]
    Unavailable {
        /// The identity.
        identity: SpiffeId,
        /// Why the last attempt failed.
        reason: String,
    },
    /// The last workload of the identity left this node while the caller waited.
    #[error("no certificate for {0}: it has no workload on this node any more")]
    Forgotten(SpiffeId),
    /// The manager was shut down.
    #[error("no certificate for {0}: shutting down")]
    Stopped(SpiffeId),
}

/// Why a certificate could not be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// No request could be made.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The signing task ended without a result: it panicked, or was aborted.
    #[error("the signing request ended without an answer")]
    Aborted,
    /// No CA is configured: set `CA_ADDRESS`.
    #[error("there is no CA: CA_ADDRESS is empty")]
    NoCa,
    /// The request could not be sent without valid credentials: the token file, or a header. The file may appear later.
    #[error("no credentials for the CA: {reason}")]
    Credentials {
        /// What is wrong with which file or header.
        reason: String,
    },
    /// The local signer of `FAKE_CA` refused the request.
    #[error("local signer: {reason}")]
    LocalSigner {
        /// The error of the X.509 library.
        reason: String,
    },
    /// The CA could not be reached, or the channel to it broke.
    #[error("CA at {address} cannot be reached: {reason}")]
    Unreachable {
        /// The CA's address (`CA_ADDRESS`).
        address: String,
        /// The transport's error.
        reason: String,
    },
    /// The CA answered with an error.
    #[error("CA refused: {code}: {message}")]
    Refused {
        /// gRPC status code.
        code: String,
        /// gRPC status message.
        message: String,
    },
    /// The CA did not answer in time.
    #[error("CA did not answer within {0:?}")]
    Deadline(Duration),
    /// The CA's answer makes no usable certificate.
    #[error("unusable answer from the CA: {0}")]
    BadAnswer(#[from] CertError),
}
