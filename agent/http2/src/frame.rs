//! The frame codec (RFC 9113 §4 and §6): headers, types, flags, and the bytes of the control frames that we send.
//!
//! Knows the layout of frames and nothing of connections.

/// Identifier of a stream; 0 is the connection itself.
pub type StreamId = u32;

/// Length of a frame header.
pub const HEADER_LEN: usize = 9;

/// What a client sends first (RFC 9113 §3.4).
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Largest stream identifier, window and window increment.
pub(crate) const MAX_U31: u32 = (1 << 31) - 1;

/// The smallest MAX_FRAME_SIZE, and the one before any SETTINGS.
pub(crate) const MIN_MAX_FRAME_SIZE: u32 = 1 << 14;

/// The largest MAX_FRAME_SIZE.
pub(crate) const MAX_MAX_FRAME_SIZE: u32 = (1 << 24) - 1;

/// Frame types (RFC 9113 §6).
pub(crate) mod kind {
    /// Bytes of a stream.
    pub(crate) const DATA: u8 = 0;
    /// The start of a field block.
    pub(crate) const HEADERS: u8 = 1;
    /// Deprecated; read over.
    pub(crate) const PRIORITY: u8 = 2;
    /// The end of a stream in both directions.
    pub(crate) const RST_STREAM: u8 = 3;
    /// Settings, or their acknowledgement.
    pub(crate) const SETTINGS: u8 = 4;
    /// Never allowed: we disable it.
    pub(crate) const PUSH_PROMISE: u8 = 5;
    /// A ping or its answer.
    pub(crate) const PING: u8 = 6;
    /// The end of a connection.
    pub(crate) const GOAWAY: u8 = 7;
    /// Flow-control credit.
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    /// More of a field block.
    pub(crate) const CONTINUATION: u8 = 9;
}

/// Flags of a frame.
pub(crate) mod flag {
    /// The sender's last DATA or HEADERS.
    pub(crate) const END_STREAM: u8 = 1;
    /// Acknowledges SETTINGS or a PING.
    pub(crate) const ACK: u8 = 1;
    /// The field block is complete.
    pub(crate) const END_HEADERS: u8 = 4;
    /// A padding length and padding are present.
    pub(crate) const PADDED: u8 = 8;
    /// Five bytes of priority are present.
    pub(crate) const PRIORITY: u8 = 0x20;
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Length of the payload.
    pub length: u32,
    /// Its type (RFC 9113 §6).
    pub kind: u8,
    /// Its flags; their meaning depends on the type.
    pub flags: u8,
    /// Its stream.
    pub stream: StreamId,
}

impl FrameHeader {
    /// Reads a header; the reserved bit is ignored.
    #[must_use]
    pub fn parse(bytes: [u8; HEADER_LEN]) -> Self {
        let [a, b, c, kind, flags, s0, s1, s2, s3] = bytes;
        let stream = u32::from_be_bytes([s0, s1, s2, s3]) & MAX_U31;
        Self { length: u32::from_be_bytes([0, a, b, c]), kind, flags, stream }
    }

    /// Writes a header; the length must be below 2^24.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let [_, a, b, c] = self.length.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, s0, s1, s2, s3]
    }

    /// Whether a flag is set.
    #[must_use]
    pub fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Reads four bytes; the reserved bit is ignored.
#[must_use]
pub(crate) fn u31(bytes: &[u8]) -> u32 {
    u32_at(bytes) & MAX_U31
}

/// Reads the first four bytes.
#[must_use]
pub(crate) fn u32_at(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |value, byte| value << 8 | u32::from(*byte))
}

/// Appends a frame.
pub(crate) fn write(out: &mut Vec<u8>, kind: u8, flags: u8, stream: StreamId, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(MAX_MAX_FRAME_SIZE);
    out.extend_from_slice(&FrameHeader { length, kind, flags, stream }.encode());
    out.extend_from_slice(payload);
}

/// Appends a field block as HEADERS and as many CONTINUATION as the peer's frame size asks for.
pub(crate) fn write_block(
    out: &mut Vec<u8>,
    stream: StreamId,
    end_stream: bool,
    block: &[u8],
    frame_size: u32,
) {
    let size = frame_size.max(1) as usize;
    let (mut kind, mut flags) = (kind::HEADERS, if end_stream { flag::END_STREAM } else { 0 });
    let mut rest = block;
    loop {
        let (part, behind) = rest.split_at(size.min(rest.len()));
        if behind.is_empty() {
            flags |= flag::END_HEADERS;
        }
        write(out, kind, flags, stream, part);
        if behind.is_empty() {
            return;
        }
        (kind, flags, rest) = (kind::CONTINUATION, 0, behind);
    }
}
