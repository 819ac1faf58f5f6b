//! HTTP/2 error codes (RFC 9113 §7) as a type of our own.

use std::fmt;

/// An HTTP/2 error code (RFC 9113 §7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reason(u32);

impl Reason {
    /// Graceful end.
    pub const NO_ERROR: Self = Self(0);
    /// The peer violated the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// An internal failure.
    pub const INTERNAL_ERROR: Self = Self(2);
    /// The peer exceeded its flow-control credit.
    pub const FLOW_CONTROL_ERROR: Self = Self(3);
    /// A frame arrived for a half that was closed.
    pub const STREAM_CLOSED: Self = Self(5);
    /// The stream was not processed and may be retried elsewhere.
    pub const REFUSED_STREAM: Self = Self(7);
    /// The stream is no longer needed.
    pub const CANCEL: Self = Self(8);
    /// The TCP connection of a CONNECT was reset or abnormally closed.
    pub const CONNECT_ERROR: Self = Self(10);
    /// The peer generates excessive load.
    pub const ENHANCE_YOUR_CALM: Self = Self(11);

    /// The code as on the wire.
    #[must_use]
    pub fn code(self) -> u32 {
        self.0
    }
}

impl From<u32> for Reason {
    fn from(code: u32) -> Self {
        Self(code)
    }
}

impl From<isthmus_http2::Code> for Reason {
    fn from(code: isthmus_http2::Code) -> Self {
        Self(code.0)
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
