//! Errors of sessions, tunnels, CONNECTs and streams, and which of them may be retried.
//!
//! Errors of the HTTP/2 engine and of the TLS library are translated here and in `close_reason`, and nowhere
//! else.

use std::io;
use std::time::Duration;

use isthmus_http2::Code as Reason;

use crate::status::ConnectStatus;

/// Why a TLS session was not established. The texts do not name the handshake: a caller that logs one does.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The deadline passed.
    #[error("not finished within {0:?}")]
    Timeout(Duration),
    /// A certificate or parameter of the peer was refused, or the peer refused ours.
    #[error("{0}")]
    Tls(#[source] rustls::Error),
    /// The connection failed during the handshake.
    #[error("{0}")]
    Io(#[source] io::Error),
}

/// The peer's certificate was revoked while its connection was open.
///
/// The transport of a tunnel fails with this inside its [`io::Error`]; the tunnel then ends with
/// [`TunnelError::PeerRevoked`], and so does a tunnel that is nested in one of its streams. The text is the one ztunnel
/// logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("connection closed: peer certificate revoked by CRL")]
pub struct PeerRevoked;

/// Why a tunnel ended, or was not established.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TunnelError {
    /// The HTTP/2 preface did not arrive in time.
    #[error("http/2 handshake not finished within {0:?}")]
    HandshakeTimeout(Duration),
    /// The peer is silent.
    #[error("the peer sent nothing within {0:?} after a keepalive ping")]
    KeepaliveTimeout(Duration),
    /// The peer ended the tunnel with an error code.
    #[error("the peer ended the tunnel with {reason}{}{detail}", if detail.is_empty() { "" } else { ": " })]
    GoAway {
        /// The error code.
        reason: Reason,
        /// The debug data.
        detail: String,
    },
    /// The peer violated the protocol and was sent a GOAWAY.
    #[error("the peer violated the http/2 protocol: {0}")]
    Protocol(Reason),
    /// A record of the peer is invalid.
    #[error("tls record of the peer: {0}")]
    Record(isthmus_record::Error),
    /// The peer ended the TLS session with an alert.
    #[error("the peer ended the tls session with {0}")]
    Alert(isthmus_record::Alert),
    /// Reading or writing failed.
    #[error("tunnel i/o: {detail}")]
    Io {
        /// The kind of failure.
        kind: io::ErrorKind,
        /// The text of the error.
        detail: String,
    },
    /// The peer's certificate was revoked, or that of the peer of the tunnel around this one.
    #[error("{}", PeerRevoked)]
    PeerRevoked,
    /// The connection was closed with streams on it.
    #[error("the tunnel's connection was closed")]
    Closed,
    /// The drain deadline passed.
    #[error("the tunnel was closed at the drain deadline")]
    Forced,
    /// The tunnel was taken apart, with its streams, to go on elsewhere: see [`crate::handover`].
    #[error("the tunnel was handed over")]
    HandedOver,
}

/// Why a CONNECT did not become a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The target cannot be written as an authority.
    #[error("the target {0:?} is not a valid authority")]
    Authority(String),
    /// The head is larger than the peer accepts.
    #[error("the head is larger than the peer accepts")]
    HeaderListSize,
    /// The tunnel has as many streams as its limit allows.
    #[error("the tunnel is at its stream limit")]
    Full,
    /// The tunnel is being closed, and this CONNECT was not processed.
    #[error("the tunnel is being closed by the peer")]
    GoingAway,
    /// The peer refused the stream without processing it (REFUSED_STREAM).
    #[error("the peer refused the stream")]
    Refused,
    /// The peer answered with a status other than 200.
    #[error("http status: {0}")]
    Status(ConnectStatus),
    /// The peer reset the stream instead of answering.
    #[error("the stream was reset before an answer: {0}")]
    Reset(Reason),
    /// The tunnel ended before an answer.
    #[error("the tunnel was lost before an answer: {0}")]
    Lost(#[source] TunnelError),
}

/// Why a stream ended otherwise than by END_STREAM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer (or this side, earlier) reset it.
    #[error("the stream was reset: {0}")]
    Reset(Reason),
    /// Its tunnel ended.
    #[error("the stream's tunnel was lost: {0}")]
    Lost(#[source] TunnelError),
    /// This half was finished already.
    #[error("the stream's sending half is closed")]
    Finished,
}

/// Why a tunnel was not taken apart.
#[derive(Debug, thiserror::Error)]
pub enum QuiesceError {
    /// Streams await their answer, or are in other hands than a copy's. The tunnel goes on.
    #[error("{unanswered} streams of the tunnel were not at rest within {limit:?}")]
    Unsettled {
        /// How long that was waited for.
        limit: Duration,
        /// Streams that await an answer.
        unanswered: usize,
    },
    /// It is being taken apart already.
    #[error("the tunnel is being taken apart already")]
    Underway,
    /// The tunnel has ended.
    #[error("the tunnel cannot be taken apart: {0}")]
    Ended(#[source] TunnelError),
    /// A socket cannot be taken from its runtime, or a last record not be sealed. The tunnel is lost.
    #[error("the tunnel was lost while it was taken apart: {0}")]
    Io(#[from] io::Error),
}

/// Why a tunnel was not put together. Its connections are reset.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// It is the other end of a tunnel.
    #[error("the parts are of the tunnel's other end")]
    Role,
    /// It does not run over a socket.
    #[error("the transport of the tunnel is no socket")]
    Transport,
    /// A socket cannot be used.
    #[error("a connection of the tunnel cannot be taken over: {0}")]
    Io(#[from] io::Error),
    /// A key cannot be made of its secret.
    #[error("the keys of the tunnel cannot be taken over: {0}")]
    Keys(#[from] isthmus_record::Error),
}

// === impl TlsError ===

impl TlsError {
    /// Whether another attempt with the same peer and certificate may succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::Tls(_))
    }
}

// === impl PeerRevoked ===

impl From<PeerRevoked> for io::Error {
    fn from(error: PeerRevoked) -> Self {
        Self::new(io::ErrorKind::PermissionDenied, error)
    }
}

// === impl TunnelError ===

impl TunnelError {
    pub(crate) fn from_io(error: &io::Error) -> Self {
        Self::typed_cause(error).unwrap_or_else(|| Self::Io { kind: error.kind(), detail: error.to_string() })
    }

    /// The typed reason inside an error of the transport. Below a nested tunnel the transport is a stream of the outer
    /// one, whose own reason is the inner one's too.
    pub(crate) fn typed_cause(error: &io::Error) -> Option<Self> {
        let inner = error.get_ref()?;
        let outer = inner.downcast_ref::<StreamError>();
        let revoked = inner.is::<PeerRevoked>() || outer.is_some_and(StreamError::is_peer_revoked);
        revoked.then_some(Self::PeerRevoked)
    }
}

// === impl OpenError ===

impl OpenError {
    /// Whether the same CONNECT may be retried on another tunnel. No byte of the application is sent before the 200, so a
    /// tunnel that was lost meanwhile does not forbid it.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Full | Self::GoingAway | Self::Refused | Self::Lost(_))
    }

    /// Whether the tunnel ended because a peer was revoked.
    #[must_use]
    pub fn is_peer_revoked(&self) -> bool {
        matches!(self, Self::Lost(TunnelError::PeerRevoked))
    }
}

// === impl StreamError ===

impl StreamError {
    /// The code of a reset.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Reset(reason) => Some(*reason),
            Self::Lost(_) | Self::Finished => None,
        }
    }

    /// Whether the tunnel ended because a peer was revoked.
    #[must_use]
    pub fn is_peer_revoked(&self) -> bool {
        matches!(self, Self::Lost(TunnelError::PeerRevoked))
    }
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        let kind = match &error {
            StreamError::Reset(_) => io::ErrorKind::ConnectionReset,
            StreamError::Lost(_) => io::ErrorKind::ConnectionAborted,
            StreamError::Finished => io::ErrorKind::BrokenPipe,
        };
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revocation_is_recognized_by_type_not_by_text_or_kind() {
        let from = |error: io::Error| TunnelError::from_io(&error);
        assert_eq!(from(PeerRevoked.into()), TunnelError::PeerRevoked);
        let outer = StreamError::Lost(TunnelError::PeerRevoked);
        assert_eq!(from(outer.into()), TunnelError::PeerRevoked, "the tunnel around this one");
        let same_text = io::Error::new(io::ErrorKind::PermissionDenied, PeerRevoked.to_string());
        assert!(matches!(from(same_text), TunnelError::Io { .. }));
        assert!(matches!(from(io::ErrorKind::PermissionDenied.into()), TunnelError::Io { .. }));
        assert!(matches!(from(StreamError::Lost(TunnelError::Closed).into()), TunnelError::Io { .. }));
    }
}
