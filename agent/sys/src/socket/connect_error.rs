//! Why a connection could not be made, and whether another address is worth trying.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::Error;

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The peer did not answer: its host is down, or a network policy drops the packets.
    #[error("connect to {to}: no answer within {after:?}")]
    Timeout {
        /// The peer.
        to: SocketAddr,
        /// The deadline.
        after: Duration,
    },
    /// The peer's host answered with a reset: no process listens on the port.
    #[error("connect to {to}: refused")]
    Refused {
        /// The peer.
        to: SocketAddr,
    },
    /// The socket could not be made or configured: this host's fault, not the peer's.
    #[error(transparent)]
    Setup(#[from] Error),
    /// Anything else.
    #[error("connect to {to}: {cause}")]
    Other {
        /// The peer.
        to: SocketAddr,
        /// The kernel's answer.
        cause: io::Error,
    },
}

impl ConnectError {
    pub(super) fn from_io(to: SocketAddr, cause: io::Error) -> Self {
        match cause.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused { to },
            _ => Self::Other { to, cause },
        }
    }

    /// Whether another endpoint may succeed where this one failed.
    #[must_use]
    pub fn retryable(&self) -> bool {
        use io::ErrorKind::{ConnectionReset, HostUnreachable, NetworkUnreachable, TimedOut};
        match self {
            Self::Timeout { .. } | Self::Refused { .. } => true,
            Self::Setup(_) => false,
            Self::Other { cause, .. } => {
                matches!(cause.kind(), ConnectionReset | HostUnreachable | NetworkUnreachable | TimedOut)
            }
        }
    }
}
