//! HTTP statuses of CONNECT answers as a type of our own.

use std::fmt;

/// The status with which a CONNECT is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectStatus(u16);

impl ConnectStatus {
    /// The CONNECT is accepted.
    pub const OK: Self = Self(200);
    /// The request is malformed, or its target does not belong to this peer.
    pub const BAD_REQUEST: Self = Self(400);
    /// An authorization policy denies the request. (403 would be the proper status; 401 is what ztunnel answers.)
    pub const UNAUTHORIZED: Self = Self(401);
    /// The target cannot be reached.
    pub const SERVICE_UNAVAILABLE: Self = Self(503);

    /// The number as on the wire.
    #[must_use]
    pub fn as_u16(self) -> u16 {
        self.0
    }
}

impl From<u16> for ConnectStatus {
    fn from(status: u16) -> Self {
        Self(status)
    }
}

impl fmt::Display for ConnectStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
