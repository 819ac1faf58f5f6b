//! A certificate with its key and roots, parsed once, and the TLS of the connections that use it.

mod chain;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use isthmus_model::SpiffeId;
use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, UnixTime};

pub(crate) use self::chain::rfc3339;
pub use self::chain::{CertSummary, ChainError};
use crate::evidence::PeerEvidence;
use crate::path::{PeerRole, spiffe_ids};
use crate::peer::PeerIdentity;
use crate::tls::{ClientTls, ServerTls, TlsTemplate};
use crate::trust::{RevocationWatch, Trust};

/// A leaf with its key, its intermediates, and the roots it came with.
pub struct Certificate {
    identity: SpiffeId,
    leaf_ids: Vec<SpiffeId>,
    chain: Vec<CertSummary>,
    roots: Vec<CertSummary>,
    not_before: SystemTime,
    not_after: SystemTime,
    roots_expire: SystemTime,
    tls: TlsTemplate,
}

/// Why a key and a chain make no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    /// The chain is shorter than a leaf and the roots.
    #[error("chain has {0} element(s), at least a leaf and the roots are needed")]
    NoRoots(usize),
    /// An element of the chain is unusable.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The key does not parse, or is not the leaf's.
    #[error("private key: {0}")]
    Key(String),
    /// The answer is larger than any chain and roots of a mesh.
    #[error("{0} are more than the {1} that an answer may have")]
    TooLarge(String, usize),
    /// The leaf is not valid yet, by more than clocks may differ.
    #[error("leaf is valid from {0} on: the CA's clock or this node's is wrong")]
    NotYetValid(String),
    /// No peer with the same roots would accept it.
    #[error("no peer would accept it: {0}")]
    Unacceptable(String),
    /// The leaf was issued for another identity.
    #[error("leaf is for {}, asked for {asked}", presented.join(", "))]
    WrongIdentity {
        /// The requested identity.
        asked: SpiffeId,
        /// Identities of the leaf.
        presented: Vec<String>,
    },
    /// The leaf is not valid any more.
    #[error("leaf expired at {0}")]
    Expired(String),
    /// No TLS configuration can be made.
    #[error("no TLS configuration can be made: {0}")]
    Tls(String),
}

/// Bytes of an answer, and certificates in it, roots included. A handshake message has at most 64 KiB, and each identity
/// holds its chain and its roots.
const LARGEST: usize = 512 * 1024;
const MOST: usize = 200;
/// Identities of a leaf that an error names.
const NAMED: usize = 3;
/// What the clocks of the CA and of a node may differ by.
const CLOCK_SKEW: Duration = Duration::from_secs(10);

// === impl Certificate ===

impl Certificate {
    /// Assembles a certificate. `chain` is PEM: the leaf first, then intermediates, **the last element is the roots**.
    ///
    /// # Errors
    /// When anything does not parse, the key is not the leaf's, or there are no roots.
    pub fn from_pem(identity: SpiffeId, key_pem: &str, chain: &[String]) -> Result<Self, CertError> {
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|error| CertError::Key(error.to_string()))?;
        Self::new(identity, key, chain)
    }

    /// Like [`Certificate::from_pem`], with a key that is already parsed.
    ///
    /// # Errors
    /// As [`Certificate::from_pem`].
    pub fn new(identity: SpiffeId, key: PrivateKeyDer<'static>, chain: &[String]) -> Result<Self, CertError> {
        Self::with_trust(identity, key, chain, &Trust::default())
    }

    /// Like [`Certificate::new`], with the trust rules of the process for verifying peers.
    ///
    /// # Errors
    /// As [`Certificate::from_pem`].
    pub fn with_trust(
        identity: SpiffeId,
        key: PrivateKeyDer<'static>,
        chain: &[String],
        trust: &Trust,
    ) -> Result<Self, CertError> {
        let Some((roots, [_, ..])) = chain.split_last() else {
            return Err(CertError::NoRoots(chain.len()));
        };
        let size = chain.iter().map(String::len).sum::<usize>();
        if size > LARGEST {
            return Err(CertError::TooLarge(format!("{size} bytes"), LARGEST));
        }
        let last = chain.len() - 1;
        let mut certs = Vec::new();
        for (element, text) in chain[..last].iter().enumerate() {
            certs.extend(chain::parse(element, text)?);
        }
        let roots = chain::parse(last, roots)?;
        if certs.len() + roots.len() > MOST {
            let count = certs.len() + roots.len();
            return Err(CertError::TooLarge(format!("{count} certificates"), MOST));
        }
        let mut trusted = RootCertStore::empty();
        for root in &roots {
            trusted.add(root.der.clone()).map_err(|error| ChainError::unreadable(last, &error))?;
        }
        let (not_before, not_after) = (certs[0].not_before, certs[0].not_after);
        let leaf_ids = spiffe_ids(&certs[0].der).map_err(|error| ChainError::unreadable(0, &error))?;
        let ders = certs.iter().map(|cert| cert.der.clone()).collect();
        let key = CertifiedKey::from_der(ders, key, &trust.key_exchange().provider())
            .map_err(|error| CertError::Key(error.to_string()))?;
        let tls = TlsTemplate::new(&identity.trust_domain, Arc::new(trusted), trust, key);
        Ok(Self {
            tls: tls.map_err(|error| CertError::Tls(error.to_string()))?,
            identity,
            leaf_ids,
            not_before,
            not_after,
            roots_expire: roots.iter().map(|root| root.not_after).min().unwrap_or(not_after),
            chain: certs.into_iter().map(|cert| cert.summary).collect(),
            roots: roots.into_iter().map(|cert| cert.summary).collect(),
        })
    }

    /// The identity it was requested for.
    #[must_use]
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// Checks that the leaf's first identity is the requested one.
    ///
    /// # Errors
    /// [`CertError::WrongIdentity`] when it is not.
    pub fn check_identity(&self) -> Result<(), CertError> {
        if self.leaf_ids.first() == Some(&self.identity) {
            return Ok(());
        }
        let presented = self.leaf_ids.iter().take(NAMED).map(ToString::to_string).collect();
        Err(CertError::WrongIdentity { asked: self.identity.clone(), presented })
    }

    /// Checks that peers which trust its roots would accept it, as a client and as a server: the verification that they make
    /// is made here first, so that a useless certificate never takes the place of a good one. Revocation is not part of
    /// it.
    ///
    /// # Errors
    /// Why they would not.
    pub fn check_acceptable(&self, now: SystemTime) -> Result<(), CertError> {
        if self.not_before > now + CLOCK_SKEW {
            return Err(CertError::NotYetValid(rfc3339(self.not_before)));
        }
        let at = self.not_before.max(now).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        for role in [PeerRole::Client, PeerRole::Server] {
            self.tls
                .verify_own(UnixTime::since_unix_epoch(at), role)
                .map_err(|error| CertError::Unacceptable(error.to_string()))?;
        }
        Ok(())
    }

    /// Start of the leaf's validity.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// End of the leaf's validity.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// When the first of the roots expires.
    #[must_use]
    pub fn roots_expire(&self) -> SystemTime {
        self.roots_expire
    }

    /// Whether the leaf has not expired at `now`.
    #[must_use]
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        now < self.not_after
    }

    /// Leaf and intermediates, for the config dump.
    #[must_use]
    pub fn chain(&self) -> &[CertSummary] {
        &self.chain
    }

    /// Roots, for the config dump.
    #[must_use]
    pub fn roots(&self) -> &[CertSummary] {
        &self.roots
    }

    /// TLS for dialling one peer, which must prove one of `expected`. With an empty set every handshake fails.
    #[must_use]
    pub fn client_tls(&self, expected: &[SpiffeId]) -> ClientTls {
        self.tls.client(expected)
    }

    /// TLS for accepting one peer, which must prove an identity of our own trust domain.
    #[must_use]
    pub fn server_tls(&self) -> ServerTls {
        self.tls.server()
    }

    /// Proves the peer of a connection once more that another process of this agent hands over: its chain is verified as
    /// of the time of its handshake, under the rules and the revocations that are in force here. A peer that was dialled
    /// must have one of `expected`.
    ///
    /// # Errors
    /// When the peer would not be accepted here, with the error of a handshake.
    pub fn readmit(
        &self,
        evidence: &PeerEvidence,
        expected: &[SpiffeId],
    ) -> Result<(PeerIdentity, RevocationWatch), rustls::Error> {
        self.tls.readmit(evidence, expected)
    }

    /// The roots it came with, as trust anchors.
    pub(crate) fn trusted(&self) -> &RootCertStore {
        self.tls.roots()
    }
}

impl fmt::Debug for Certificate {
    /// Never the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let serial = self.chain.first().map(|leaf| leaf.serial_number.as_str());
        f.debug_struct("Certificate")
            .field("identity", &self.identity)
            .field("serial", &serial)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests;
