//! The proof of a peer's identity.
//!
//! Every handshake has a `PeerProof` of its own, shared by its verifier and its [`MeshTls`](crate::MeshTls). The
//! verifier records that it accepted the chain and that the peer signed the handshake with the leaf's key; a
//! [`PeerIdentity`] is made from those two records and a finished session that presented the same leaf, and from nothing
//! else. A session made with another verifier, or with a copy of the configuration whose verifier was replaced, records
//! nothing and yields none.
//!
//! A connection that another process of this agent hands over has no session here. The verifier accepts its peer's chain
//! once more; that the peer had signed its handshake is what the other process vouches for, which could as well have
//! handed over the session's secrets to anything.
//!
//! There is no other constructor:
//!
//! ```compile_fail
//! let id: isthmus_model::SpiffeId = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
//! let forged = isthmus_identity::PeerIdentity(id);
//! ```
//!
//! ```compile_fail
//! fn forge(session: &rustls::ServerConnection) -> Option<isthmus_identity::PeerIdentity> {
//!     isthmus_identity::PeerIdentity::of(session)
//! }
//! ```

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use isthmus_model::SpiffeId;
use rustls::CommonState;
use rustls_pki_types::CertificateDer;

/// The peer of a TLS connection holds the key of a certificate with this identity, and our verifier accepted it. Made by
/// [`MeshTls::peer`](crate::MeshTls::peer) only; see the module documentation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerIdentity(SpiffeId);

/// What the verifier of one handshake has established.
#[derive(Debug, Default)]
pub(crate) struct PeerProof {
    accepted: OnceLock<AcceptedLeaf>,
    key_proven: AtomicBool,
}

/// A leaf whose chain was accepted, with its first SPIFFE identity.
#[derive(Debug)]
struct AcceptedLeaf {
    der: CertificateDer<'static>,
    identity: SpiffeId,
}

// === impl PeerIdentity ===

impl PeerIdentity {
    /// The identity: the first SPIFFE URI name of the peer's leaf.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.0
    }
}

// === impl PeerProof ===

impl PeerProof {
    /// Records that the chain of `leaf` was accepted. Only the first leaf counts: a configuration that is used for a
    /// second handshake proves nothing about that one.
    pub(crate) fn chain_accepted(&self, leaf: &CertificateDer<'_>, identities: Vec<SpiffeId>) {
        if let Some(identity) = identities.into_iter().next() {
            let _ = self.accepted.set(AcceptedLeaf { der: leaf.clone().into_owned(), identity });
        }
    }

    /// Records that the handshake was signed with the key of `leaf`.
    pub(crate) fn key_proven(&self, leaf: &CertificateDer<'_>) {
        if self.accepted.get().is_some_and(|accepted| accepted.der == *leaf) {
            self.key_proven.store(true, Ordering::Release);
        }
    }

    /// The identity of a peer whose chain was accepted here, and whose key another process of this agent saw proved.
    pub(crate) fn handed_over(&self) -> Option<PeerIdentity> {
        self.accepted.get().map(|accepted| PeerIdentity(accepted.identity.clone()))
    }

    /// The identity that the peer of `session` proved. `None` while the handshake runs, and for a session whose peer
    /// this handshake's verifier did not accept.
    pub(crate) fn identity(&self, session: &CommonState) -> Option<PeerIdentity> {
        if session.is_handshaking() || !self.key_proven.load(Ordering::Acquire) {
            return None;
        }
        let accepted = self.accepted.get()?;
        let leaf = session.peer_certificates()?.first()?;
        (accepted.der == *leaf).then(|| PeerIdentity(accepted.identity.clone()))
    }
}

#[cfg(test)]
mod tests {
    use isthmus_kit::pki::Ca;

    use super::*;
    use crate::cert::tests::{handshake, id, proper};

    #[test]
    fn an_accepted_chain_is_no_proof_until_its_key_has_signed() {
        let server = id("spiffe://cluster.local/ns/shop/sa/cart");
        let ca = Ca::new("root").unwrap();
        let (web, cart) =
            (proper(&ca, "spiffe://cluster.local/ns/shop/sa/web"), proper(&ca, &server.to_string()));
        let session =
            handshake(&web.client_tls(std::slice::from_ref(&server)), &cart.server_tls()).client.unwrap();
        let leaf = session.peer_certificates().unwrap()[0].clone();
        let proof = PeerProof::default();
        proof.key_proven(&leaf);
        proof.chain_accepted(&leaf, vec![server.clone()]);
        assert_eq!(proof.identity(&session), None, "the signature was not of an accepted leaf");
        proof.key_proven(&leaf);
        assert_eq!(proof.identity(&session), Some(PeerIdentity(server)));
    }
}
