//! What can go wrong with a session, a tunnel, an open and a stream; who is to blame and whether to try again.
//!
//! Engine errors are turned into these types here and nowhere else.

use std::io;
use std::time::Duration;

use crate::Reason;

/// Who is to blame for a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// This process.
    Us,
    /// The other end.
    Peer,
    /// What lies between: the network, or a peer that vanished.
    Path,
}

/// Why a TLS session was not established.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The deadline passed.
    #[error("tls handshake not finished within {0:?}")]
    Timeout(Duration),
    /// The peer, or what it presented, was refused; or it refused us.
    #[error("tls handshake error: {0}")]
    Tls(#[source] rustls::Error),
    /// The connection failed meanwhile.
    #[error("tls handshake error: {0}")]
    Io(#[source] io::Error),
}

/// Why a tunnel ended, or never was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TunnelError {
    /// The HTTP/2 preface did not arrive in time.
    #[error("http/2 handshake not finished within {0:?}")]
    HandshakeTimeout(Duration),
    /// The peer is silent.
    #[error("nothing was received for {0:?} after a ping")]
    KeepaliveTimeout(Duration),
    /// The peer ended the tunnel with an error code.
    #[error("the peer ended the tunnel with {reason}{}{detail}", if detail.is_empty() { "" } else { ": " })]
    GoAway {
        /// Its code.
        reason: Reason,
        /// Its debug text.
        detail: String,
    },
    /// The peer broke the protocol and was told so.
    #[error("the peer broke the http/2 protocol: {0}")]
    Protocol(Reason),
    /// Reading or writing failed.
    #[error("tunnel i/o: {detail}")]
    Io {
        /// The kind of failure.
        kind: io::ErrorKind,
        /// The system's words.
        detail: String,
    },
    /// The connection was closed with streams on it.
    #[error("the tunnel's connection was closed")]
    Closed,
    /// The shutdown's deadline passed.
    #[error("the tunnel was closed by the shutdown")]
    Forced,
}

/// Why a CONNECT did not become a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The target cannot be written as an authority.
    #[error("the target {0:?} is no authority")]
    Authority(String),
    /// Every stream of the tunnel is taken.
    #[error("the tunnel has no stream left")]
    Full,
    /// The tunnel is being closed, and this CONNECT was not looked at.
    #[error("the tunnel is going away")]
    GoingAway,
    /// The peer refused the stream unseen.
    #[error("the stream was refused")]
    Refused,
    /// The peer answered with something other than 200.
    #[error("http status: {0}")]
    Status(u16),
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

// === impl TlsError ===

impl TlsError {
    /// The TLS library hides its own error in an I/O error; this takes it out again.
    pub(crate) fn from_io(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => Self::Tls(tls.clone()),
            None => Self::Io(error),
        }
    }

    /// Who is to blame.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::Timeout(_) | Self::Io(_) => Blame::Path,
            Self::Tls(_) => Blame::Peer,
        }
    }

    /// Whether the same may succeed on another try.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::Tls(_))
    }
}

// === impl TunnelError ===

impl TunnelError {
    pub(crate) fn from_h2(error: h2::Error) -> Self {
        if error.is_io() {
            return error.into_io().map_or(Self::Closed, |error| Self::from_io(&error));
        }
        let reason = error.reason().map_or(Reason::PROTOCOL_ERROR, Reason::from);
        if error.is_remote() {
            Self::GoAway { reason, detail: detail(&error) }
        } else {
            Self::Protocol(reason)
        }
    }

    pub(crate) fn from_io(error: &io::Error) -> Self {
        Self::Io { kind: error.kind(), detail: error.to_string() }
    }

    /// Who is to blame.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::GoAway { .. } | Self::Protocol(_) => Blame::Peer,
            Self::HandshakeTimeout(_) | Self::KeepaliveTimeout(_) | Self::Io { .. } | Self::Closed => {
                Blame::Path
            }
            Self::Forced => Blame::Us,
        }
    }
}

/// The debug text of a GOAWAY: what the engine's message has in parentheses.
fn detail(error: &h2::Error) -> String {
    let text = error.to_string();
    let inside = text.split_once(" (b\"").and_then(|(_, rest)| rest.strip_suffix("\")"));
    inside.unwrap_or_default().to_owned()
}

// === impl OpenError ===

impl OpenError {
    /// Whether the same CONNECT may be tried again on another tunnel. No byte of the application is on the way before
    /// the 200, so a tunnel that was lost meanwhile is no obstacle.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Full | Self::GoingAway | Self::Refused | Self::Lost(_))
    }

    /// Who is to blame.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::Authority(_) | Self::Full => Blame::Us,
            Self::GoingAway | Self::Refused | Self::Status(_) | Self::Reset(_) => Blame::Peer,
            Self::Lost(error) => error.blame(),
        }
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

    /// Who is to blame.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::Reset(_) => Blame::Peer,
            Self::Lost(error) => error.blame(),
            Self::Finished => Blame::Us,
        }
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
