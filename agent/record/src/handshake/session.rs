//! What a finished handshake leaves: both directions of the record layer, and what is known of the peer.

use std::fmt;

use rustls::pki_types::CertificateDer;
use rustls::{CommonState, ConnectionTrafficSecrets, ExtractedSecrets};

use super::capture::CapturedSecrets;
use super::{Connection, HandshakeError};
use crate::{Opener, OpenerParts, PartialMessage, Role, Sealer, SealerParts, Suite, TrafficSecret};

/// An established TLS 1.3 session.
pub struct Session {
    /// The sending direction.
    pub sealer: Sealer,
    /// The receiving direction.
    pub opener: Opener,
    /// Which end this is.
    pub role: Role,
    /// The negotiated cipher suite.
    pub suite: Suite,
    /// The negotiated application protocol.
    pub alpn: Option<Vec<u8>>,
    /// The peer's certificate chain, leaf first, as the configuration's verifier accepted it. Empty for a client that
    /// presented none.
    pub peer_certificates: Vec<CertificateDer<'static>>,
}

// === impl Session ===

impl Session {
    pub(super) fn new(connection: Connection, captured: &CapturedSecrets) -> Result<Self, HandshakeError> {
        let (role, state): (_, &CommonState) = match &connection {
            Connection::Client(connection) => (Role::Client, connection),
            Connection::Server(connection) => (Role::Server, connection),
        };
        let suite = suite(state)?;
        let alpn = state.alpn_protocol().map(<[u8]>::to_vec);
        let peer_certificates = state.peer_certificates().unwrap_or_default();
        let peer_certificates = peer_certificates.iter().map(|one| one.clone().into_owned()).collect();
        let ExtractedSecrets { tx, rx } = match connection {
            Connection::Client(connection) => connection.dangerous_into_kernel_connection()?.0,
            Connection::Server(connection) => connection.dangerous_into_kernel_connection()?.0,
        };
        let (ours, theirs) = match role {
            Role::Client => (captured.client(), captured.server()),
            Role::Server => (captured.server(), captured.client()),
        };
        let sealer = SealerParts { secret: checked(suite, ours, &tx.1)?, sequence: tx.0, closed: false };
        let opener = OpenerParts {
            secret: checked(suite, theirs, &rx.1)?,
            sequence: rx.0,
            role,
            partial: PartialMessage::default(),
            idle_records: 0,
            closed: false,
        };
        let (sealer, opener) = (Sealer::from_parts(sealer)?, Opener::from_parts(opener)?);
        Ok(Self { sealer, opener, role, suite, alpn, peer_certificates })
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("sealer", &self.sealer)
            .field("opener", &self.opener)
            .finish_non_exhaustive()
    }
}

fn suite(state: &CommonState) -> Result<Suite, HandshakeError> {
    let code = u16::from(state.negotiated_cipher_suite().ok_or(HandshakeError::NotDone)?.suite());
    Suite::from_code(code).ok_or(HandshakeError::Suite(code))
}

/// The captured secret, if the key and initialization vector that follow from it are the ones that rustls uses.
fn checked(
    suite: Suite,
    captured: Option<&[u8]>,
    used: &ConnectionTrafficSecrets,
) -> Result<TrafficSecret, HandshakeError> {
    let secret = TrafficSecret::new(suite, captured.ok_or(HandshakeError::Secrets)?)?;
    let (used_suite, key, iv) = match used {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Suite::Aes128GcmSha256, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Suite::Aes256GcmSha384, key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (Suite::ChaCha20Poly1305Sha256, key, iv),
        _ => return Err(HandshakeError::Secrets),
    };
    let material = secret.key_material()?;
    let same = used_suite == suite && material.key() == key.as_ref() && material.iv[..] == *iv.as_ref();
    if same { Ok(secret) } else { Err(HandshakeError::Secrets) }
}
