//! What of a tunnel travels between two processes, its limits, and why it is refused.

use std::os::fd::OwnedFd;
use std::time::Duration;

use isthmus_proto::handover as proto;
use zeroize::Zeroizing;

use crate::error::StreamError;

/// The version of the encoding. Another one is refused: the fields are those of this version's tunnel.
pub const VERSION: u32 = 1;

/// The largest item, in bytes: a stream with as much unread as a large window holds.
pub const MAX_ITEM: usize = 64 * 1024 * 1024;

/// The most streams of a tunnel.
pub(super) const MAX_STREAMS: usize = 16 * 1024;
/// The largest window and stream number (RFC 9113 §6.9).
pub(super) const MAX_U31: u32 = (1 << 31) - 1;
/// Byte counts beyond which they could overflow.
pub(super) const MAX_BYTES: u64 = 1 << 62;
/// Bytes on their way from or to the transport: its limits are below one and a half megabytes.
pub(super) const MAX_BUFFERED: usize = 8 * 1024 * 1024;

/// A message and the descriptor that travels with it. The bytes hold secrets and are cleared when dropped.
#[derive(Debug)]
pub struct Item {
    /// The message.
    pub bytes: Zeroizing<Vec<u8>>,
    /// The socket that it describes: the tunnel's transport, or a stream's application.
    pub socket: Option<OwnedFd>,
}

/// Why a tunnel cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The transport must be unwrapped first: [`super::TunnelParts::unwrap_transport`].
    #[error("the transport of the tunnel is no socket")]
    Transport,
    /// The tunnel has failed, or more is buffered than [`MAX_ITEM`] holds.
    #[error("the tunnel's {0} cannot be handed over")]
    Field(&'static str),
}

/// Why a tunnel is refused.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The sender is of another version.
    #[error("handover version {0} is not {VERSION}")]
    Version(u32),
    /// It is no message.
    #[error("malformed handover message: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// A field is missing, too long or out of its range.
    #[error("handover message: invalid {0}")]
    Field(&'static str),
    /// Items are missing, or there are too many.
    #[error("handover of {expected} items has {found}")]
    Items {
        /// How many there should be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
}

/// Clears a buffer at once. [`Zeroizing`] writes byte by byte, which for the unread megabytes of a stream is a part of the
/// pause that can be seen.
pub fn wipe(mut bytes: Zeroizing<Vec<u8>>) {
    let mut bytes = std::mem::take(&mut *bytes);
    bytes.fill(0);
    // The writes must not be left out because the buffer is freed next.
    std::hint::black_box(bytes.as_slice());
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
}

pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The value if it is within the limit.
pub(super) fn at_most<T: PartialOrd>(value: T, most: T, field: &'static str) -> Result<T, DecodeError> {
    if value <= most { Ok(value) } else { Err(DecodeError::Field(field)) }
}

/// The bytes if they are not too many.
pub(super) fn bounded<T>(list: Vec<T>, most: usize, field: &'static str) -> Result<Vec<T>, DecodeError> {
    if list.len() <= most { Ok(list) } else { Err(DecodeError::Field(field)) }
}

pub(super) fn index(number: u64, field: &'static str) -> Result<usize, DecodeError> {
    usize::try_from(number).map_err(|_| DecodeError::Field(field))
}

pub(super) fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// The end of a half of a stream.
pub(super) fn end(error: Option<&StreamError>) -> Result<proto::End, EncodeError> {
    use proto::end::Kind;
    let (kind, code) = match error {
        None => (Kind::Proper, 0),
        Some(StreamError::Reset(code)) => (Kind::Reset, code.0),
        Some(StreamError::Finished) => (Kind::Finished, 0),
        // Only of a tunnel that has ended.
        Some(StreamError::Lost(_)) => return Err(EncodeError::Field("streams")),
    };
    Ok(proto::End { kind: kind.into(), code })
}

pub(super) fn end_from(end: proto::End) -> Result<Option<StreamError>, DecodeError> {
    use proto::end::Kind;
    match Kind::try_from(end.kind) {
        Ok(Kind::Proper) => Ok(None),
        Ok(Kind::Reset) => Ok(Some(StreamError::Reset(isthmus_http2::Code(end.code)))),
        Ok(Kind::Finished) => Ok(Some(StreamError::Finished)),
        Err(_) => Err(DecodeError::Field("end of a stream")),
    }
}

/// The end of a half that has failed.
pub(super) fn failure_from(end: proto::End) -> Result<StreamError, DecodeError> {
    end_from(end)?.ok_or(DecodeError::Field("end of a stream"))
}
