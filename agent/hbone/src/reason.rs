//! Why a stream or a tunnel was reset: HTTP/2 error codes as a type of our own.

use std::fmt;

/// An HTTP/2 error code (RFC 9113 §7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reason(u32);

impl Reason {
    /// Nothing went wrong.
    pub const NO_ERROR: Self = Self(0);
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// Something of ours failed.
    pub const INTERNAL_ERROR: Self = Self(2);
    /// The peer sent more than its credit.
    pub const FLOW_CONTROL_ERROR: Self = Self(3);
    /// A frame came for a half that was closed.
    pub const STREAM_CLOSED: Self = Self(5);
    /// The stream was not looked at: it may be tried again elsewhere.
    pub const REFUSED_STREAM: Self = Self(7);
    /// The stream is no longer wanted.
    pub const CANCEL: Self = Self(8);
    /// The TCP connection at the other end of a CONNECT was reset.
    pub const CONNECT_ERROR: Self = Self(10);
    /// The peer asks for more than it should.
    pub const ENHANCE_YOUR_CALM: Self = Self(11);

    /// The code as on the wire.
    #[must_use]
    pub fn code(self) -> u32 {
        self.0
    }

    pub(crate) fn to_h2(self) -> h2::Reason {
        self.0.into()
    }
}

impl From<u32> for Reason {
    fn from(code: u32) -> Self {
        Self(code)
    }
}

impl From<h2::Reason> for Reason {
    fn from(reason: h2::Reason) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            0 => "NO_ERROR",
            1 => "PROTOCOL_ERROR",
            2 => "INTERNAL_ERROR",
            3 => "FLOW_CONTROL_ERROR",
            4 => "SETTINGS_TIMEOUT",
            5 => "STREAM_CLOSED",
            6 => "FRAME_SIZE_ERROR",
            7 => "REFUSED_STREAM",
            8 => "CANCEL",
            9 => "COMPRESSION_ERROR",
            10 => "CONNECT_ERROR",
            11 => "ENHANCE_YOUR_CALM",
            12 => "INADEQUATE_SECURITY",
            13 => "HTTP_1_1_REQUIRED",
            other => return write!(f, "error code {other:#x}"),
        };
        f.write_str(name)
    }
}
