//! How a copy ended.

use std::io;

use crate::error::{StreamError, TunnelError};

/// A side of a copy: the first argument of [`tunnel()`](super::tunnel()) and [`plain()`](super::plain()) is local, the second
/// remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The TCP connection given first.
    Local,
    /// The stream, or the TCP connection given second.
    Remote,
}

/// How a copy ended.
#[derive(Debug)]
pub struct CopyOutcome {
    /// Bytes from the local side to the remote one.
    pub sent: u64,
    /// Bytes from the remote side to the local one.
    pub received: u64,
    /// Which side closed first, or failed.
    pub closed_by: Side,
    /// What failed; `None` when both sides closed properly.
    pub error: Option<CopyError>,
}

/// Why a copy failed.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A TCP connection failed.
    #[error("{}: {error}", match side { Side::Local => "local connection", Side::Remote => "remote connection" })]
    Tcp {
        /// Which connection.
        side: Side,
        /// Its error.
        #[source]
        error: io::Error,
    },
    /// The stream was reset or lost.
    #[error("{0}")]
    Stream(#[from] StreamError),
}

impl CopyOutcome {
    /// Whether the copy stopped because its tunnel was taken apart: the connection is open, and goes on elsewhere.
    #[must_use]
    pub fn is_handed_over(&self) -> bool {
        matches!(self.error, Some(CopyError::Stream(StreamError::Lost(TunnelError::HandedOver))))
    }
}

impl CopyError {
    /// The side that failed.
    #[must_use]
    pub fn side(&self) -> Side {
        match self {
            Self::Tcp { side, .. } => *side,
            Self::Stream(_) => Side::Remote,
        }
    }

    /// Whether the stream's tunnel ended because a peer was revoked.
    #[must_use]
    pub fn is_peer_revoked(&self) -> bool {
        matches!(self, Self::Stream(error) if error.is_peer_revoked())
    }
}
