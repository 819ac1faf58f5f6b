//! What can go wrong with a record, whose fault it is, and which alert tells the peer.

use crate::Alert;

/// An error of the record layer. Except for [`Error::BufferSize`], [`Error::KeyExhausted`] and [`Error::SecretLength`] it
/// ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A record whose type, outside or inside of its protection, has no place after the handshake.
    #[error("unexpected record of type {0}")]
    UnexpectedRecord(u8),
    /// A record header with another version than 0x0303.
    #[error("record of version {0:#06x}")]
    RecordVersion(u16),
    /// A record, or the plaintext in it, longer than TLS allows.
    #[error("record too long")]
    RecordTooLong,
    /// A record too short to hold a content type and a tag.
    #[error("record too short")]
    RecordTooShort,
    /// A record that was changed, replayed or reordered, or sealed with another key.
    #[error("record does not decrypt")]
    BadRecordMac,
    /// A record that is nothing but padding, or an alert or a handshake fragment of no bytes.
    #[error("record without content")]
    NoContent,
    /// A handshake message of a type that has no place after the handshake.
    #[error("unexpected handshake message of type {0}")]
    UnexpectedMessage(u8),
    /// Another record between the fragments of a handshake message.
    #[error("handshake message interrupted by another record")]
    Interrupted,
    /// Bytes after a KeyUpdate in the same record, which would span the change of keys.
    #[error("key update is not the last message of its record")]
    AfterKeyUpdate,
    /// A handshake message or alert whose length is wrong.
    #[error("message of a wrong length")]
    MessageLength,
    /// A KeyUpdate that neither requests an answer nor declines one.
    #[error("key update with unknown request {0}")]
    KeyUpdateRequest(u8),
    /// Too many records in a row without application data.
    #[error("too many records without data in a row")]
    NoProgress,
    /// The caller's buffer does not hold exactly one record. Nothing was changed.
    #[error("buffer does not hold one record")]
    BufferSize,
    /// The key has sealed as many records as it may: update it first. Nothing was changed.
    #[error("key needs an update before the next record")]
    KeyExhausted,
    /// The sequence number would wrap.
    #[error("sequence numbers exhausted")]
    SequenceExhausted,
    /// The direction was closed before, by `close_notify`, an alert or an error.
    #[error("closed")]
    Closed,
    /// A traffic secret whose length does not fit its suite.
    #[error("traffic secret of a wrong length")]
    SecretLength,
    /// The cryptographic library refused what it has no reason to refuse.
    #[error("cryptographic library failed")]
    Crypto,
}

// === impl Error ===

impl Error {
    /// The alert that tells the peer.
    #[must_use]
    pub fn alert(self) -> Alert {
        match self {
            Self::UnexpectedRecord(_)
            | Self::NoContent
            | Self::UnexpectedMessage(_)
            | Self::Interrupted
            | Self::AfterKeyUpdate
            | Self::NoProgress => Alert::UNEXPECTED_MESSAGE,
            Self::RecordVersion(_) => Alert::PROTOCOL_VERSION,
            Self::RecordTooLong => Alert::RECORD_OVERFLOW,
            Self::RecordTooShort | Self::MessageLength => Alert::DECODE_ERROR,
            Self::BadRecordMac => Alert::BAD_RECORD_MAC,
            Self::KeyUpdateRequest(_) => Alert::ILLEGAL_PARAMETER,
            Self::BufferSize
            | Self::KeyExhausted
            | Self::SequenceExhausted
            | Self::Closed
            | Self::SecretLength
            | Self::Crypto => Alert::INTERNAL_ERROR,
        }
    }

    /// Whether the peer, or the path to it, is to blame; otherwise this end is.
    #[must_use]
    pub fn is_peers_fault(self) -> bool {
        self.alert() != Alert::INTERNAL_ERROR
    }
}
