//! The proof of a peer's identity.

use isthmus_model::SpiffeId;

use crate::verify;

/// Proof that the peer of a TLS connection holds a certificate with this identity. It exists only for a finished
/// handshake, that is, after the connection's verifier accepted the certificate and the signature made with its key; on
/// the HBONE path that verifier is always one of this crate, since every configuration comes from a
/// [`Certificate`](crate::Certificate).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerIdentity(SpiffeId);

impl PeerIdentity {
    /// The identity that the peer of this connection proved: the first SPIFFE URI of its leaf. `None` while the
    /// handshake runs, and when the peer showed no certificate or one without such a URI.
    #[must_use]
    pub fn of(connection: &rustls::CommonState) -> Option<Self> {
        if connection.is_handshaking() {
            return None;
        }
        let leaf = connection.peer_certificates()?.first()?;
        verify::spiffe_ids(leaf).ok()?.into_iter().next().map(Self)
    }

    /// The identity.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.0
    }
}
