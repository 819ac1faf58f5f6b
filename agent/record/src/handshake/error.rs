//! Why a handshake failed.

use crate::Error;

/// Why a handshake failed, or its session could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// rustls, or its peer by an alert, ended the handshake.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// Another version than TLS 1.3 was negotiated.
    #[error("peer does not speak TLS 1.3")]
    NotTls13,
    /// The peer closed the connection before the handshake was finished.
    #[error("peer closed during the handshake")]
    PeerClosed,
    /// The peer sent application data before the handshake was finished.
    #[error("application data during the handshake")]
    EarlyData,
    /// What has arrived is no TLS record.
    #[error("not a TLS record")]
    MalformedRecord,
    /// rustls asked for more turns than a handshake can need.
    #[error("handshake makes no progress")]
    NoProgress,
    /// A step after the handshake failed.
    #[error("handshake failed before")]
    Failed,
    /// The session was asked for before the handshake was finished.
    #[error("handshake is not finished")]
    NotDone,
    /// A cipher suite was negotiated that the record layer does not have.
    #[error("unsupported cipher suite {0:#06x}")]
    Suite(u16),
    /// The traffic secrets are missing, or do not yield the keys that rustls uses.
    #[error("traffic secrets do not match the session's keys")]
    Secrets,
    /// The record layer refused the secrets.
    #[error(transparent)]
    Record(#[from] Error),
}
