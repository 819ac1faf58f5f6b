//! What a peer had presented in its handshake, for proving it once more in another process to which its connection was
//! handed over. Holds certificates only; they are judged by a [`Certificate`](crate::Certificate) of that process.

use std::fmt;
use std::time::Duration;

use rustls::CommonState;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::path::PeerRole;

/// The certificates of a peer that has proved its key, and when.
#[derive(Clone)]
pub struct PeerEvidence {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) role: PeerRole,
    pub(crate) verified_at: UnixTime,
}

impl PeerEvidence {
    /// What another process of this agent says that it has verified: the peer's chain, leaf first; whether the peer had
    /// dialled; and when that was, since 1970. The caller vouches for that process.
    #[must_use]
    pub fn handed_over(chain: Vec<Vec<u8>>, has_dialled: bool, verified_at: Duration) -> Self {
        let role = if has_dialled { PeerRole::Client } else { PeerRole::Server };
        let chain = chain.into_iter().map(CertificateDer::from).collect();
        Self { chain, role, verified_at: UnixTime::since_unix_epoch(verified_at) }
    }

    /// Of a finished handshake whose peer presented a certificate.
    pub(crate) fn of(session: &CommonState, role: PeerRole) -> Option<Self> {
        let chain = session.peer_certificates().filter(|_| !session.is_handshaking())?;
        let chain = chain.iter().map(|der| der.clone().into_owned()).collect();
        Some(Self { chain, role, verified_at: UnixTime::now() })
    }

    /// The certificates in DER, leaf first.
    pub fn chain(&self) -> impl Iterator<Item = &[u8]> {
        self.chain.iter().map(|certificate| &**certificate)
    }

    /// When the peer was verified, since 1970.
    #[must_use]
    pub fn verified_at(&self) -> Duration {
        Duration::from_secs(self.verified_at.as_secs())
    }
}

impl fmt::Debug for PeerEvidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { chain, role, verified_at } = self;
        f.debug_struct("PeerEvidence")
            .field("chain", &chain.len())
            .field("role", role)
            .field("verified_at", verified_at)
            .finish()
    }
}
