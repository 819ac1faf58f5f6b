//! Codes of TLS alerts (RFC 8446, section 6).

use std::fmt;

/// The code of an alert: why an end of the connection gives up, or that it has nothing more to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Alert(pub u8);

// === impl Alert ===

impl Alert {
    /// The sender will send nothing more; no error.
    pub const CLOSE_NOTIFY: Self = Self(0);
    /// A record or message that is not allowed here.
    pub const UNEXPECTED_MESSAGE: Self = Self(10);
    /// A record that does not decrypt.
    pub const BAD_RECORD_MAC: Self = Self(20);
    /// A record longer than allowed.
    pub const RECORD_OVERFLOW: Self = Self(22);
    /// A field whose value is not allowed.
    pub const ILLEGAL_PARAMETER: Self = Self(47);
    /// A message whose length is wrong.
    pub const DECODE_ERROR: Self = Self(50);
    /// A version of the protocol that is not supported.
    pub const PROTOCOL_VERSION: Self = Self(70);
    /// A failure that has nothing to do with the peer.
    pub const INTERNAL_ERROR: Self = Self(80);
    /// The sender gives up for reasons of its own; a `close_notify` follows.
    pub const USER_CANCELED: Self = Self(90);

    /// The name of the alert in RFC 8446, for the codes that a record layer sends or a mesh's peer is likely to.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            0 => "close_notify",
            10 => "unexpected_message",
            20 => "bad_record_mac",
            22 => "record_overflow",
            40 => "handshake_failure",
            42 => "bad_certificate",
            43 => "unsupported_certificate",
            44 => "certificate_revoked",
            45 => "certificate_expired",
            46 => "certificate_unknown",
            47 => "illegal_parameter",
            48 => "unknown_ca",
            49 => "access_denied",
            50 => "decode_error",
            51 => "decrypt_error",
            70 => "protocol_version",
            71 => "insufficient_security",
            80 => "internal_error",
            90 => "user_canceled",
            112 => "unrecognized_name",
            116 => "certificate_required",
            120 => "no_application_protocol",
            _ => return None,
        })
    }
}

impl fmt::Display for Alert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "alert {}", self.0),
        }
    }
}
