//! The TLS 1.3 record layer (RFC 8446, section 5) of a tunnel, once its handshake is finished.
//!
//! Owns sealing and opening of records in place, key updates, alerts, the limits on a key's use, and the budget for
//! records that carry no data. It does no I/O, allocates nothing per record, and is plain values, so that an established
//! session can be taken apart and put together again in another process. [`handshake`] drives rustls up to that point and
//! takes the traffic secrets over. Must not know sockets, HTTP/2, or what a peer's certificate means.
//!
//! A record on the wire, as [`Sealer::seal`] fills it in and [`Opener::open`] reads it:
//!
//! ```text
//! [5 header][payload, at most 2^14 bytes][1 content type][zero padding][16 tag]
//!           └──────────────── encrypted ────────────────┘
//! ```

mod alert;
mod error;
pub mod handshake;
mod key;
mod messages;
mod opener;
mod sealer;
mod secret;
mod suite;
#[cfg(test)]
mod tests;

pub use alert::Alert;
pub use error::Error;
pub use messages::PartialMessage;
pub use opener::{Opened, Opener, OpenerParts, Role};
pub use sealer::{ALERT_LEN, KEY_UPDATE_LEN, Sealer, SealerParts};
pub use secret::TrafficSecret;
pub use suite::Suite;

/// Bytes of a record's header: type, version and length. The payload begins here.
pub const HEADER_LEN: usize = 5;

/// Bytes of the authentication tag at a record's end, in every suite of TLS 1.3.
pub const TAG_LEN: usize = 16;

/// Bytes that a record without padding has more than its payload: header, content type and tag.
pub const OVERHEAD: usize = HEADER_LEN + 1 + TAG_LEN;

/// The largest payload of a record. A sender may choose less.
pub const MAX_PAYLOAD: usize = 1 << 14;

/// The largest record that a peer may send: its length field is at most 2^14 + 256.
pub const MAX_RECORD: usize = HEADER_LEN + MAX_PAYLOAD + 256;

/// What the record layer's functions return.
pub type Result<T> = std::result::Result<T, Error>;

/// The content types of records (RFC 8446, appendix B.1).
pub(crate) mod content {
    pub(crate) const ALERT: u8 = 21;
    pub(crate) const HANDSHAKE: u8 = 22;
    pub(crate) const APPLICATION_DATA: u8 = 23;
}

/// The version that every protected record names, whatever was negotiated.
pub(crate) const LEGACY_VERSION: u16 = 0x0303;
