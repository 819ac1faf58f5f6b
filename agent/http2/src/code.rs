//! Error codes (RFC 9113 §7).

use std::fmt;

/// An error code as in RST_STREAM and GOAWAY. Any number is valid on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(pub u32);

impl Code {
    /// Graceful end.
    pub const NO_ERROR: Self = Self(0);
    /// The peer violated the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// An internal failure.
    pub const INTERNAL_ERROR: Self = Self(2);
    /// The peer exceeded its flow-control credit.
    pub const FLOW_CONTROL_ERROR: Self = Self(3);
    /// SETTINGS were not acknowledged in time.
    pub const SETTINGS_TIMEOUT: Self = Self(4);
    /// A frame arrived for a half that was closed.
    pub const STREAM_CLOSED: Self = Self(5);
    /// A frame of a wrong length.
    pub const FRAME_SIZE_ERROR: Self = Self(6);
    /// The stream was not processed and may be retried elsewhere.
    pub const REFUSED_STREAM: Self = Self(7);
    /// The stream is no longer needed.
    pub const CANCEL: Self = Self(8);
    /// The field compression state is lost.
    pub const COMPRESSION_ERROR: Self = Self(9);
    /// The TCP connection of a CONNECT was reset or abnormally closed.
    pub const CONNECT_ERROR: Self = Self(10);
    /// The peer generates excessive load.
    pub const ENHANCE_YOUR_CALM: Self = Self(11);
    /// The transport does not meet requirements.
    pub const INADEQUATE_SECURITY: Self = Self(12);
    /// HTTP/1.1 is required.
    pub const HTTP_1_1_REQUIRED: Self = Self(13);
}

const NAMES: [&str; 14] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => write!(f, "error code {:#x}", self.0),
        }
    }
}
