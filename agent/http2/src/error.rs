//! Errors of connections and streams, each with the code that the peer is sent.

use crate::budget::Abuse;
use crate::code::Code;
use crate::frame::StreamId;
use crate::head::Malformed;
use crate::hpack::HpackError;

/// What a peer did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The client's first bytes are not the preface.
    #[error("no http/2 connection preface")]
    Preface,
    /// The first frame is not SETTINGS.
    #[error("the first frame is not SETTINGS")]
    FirstFrame,
    /// A frame longer than our MAX_FRAME_SIZE.
    #[error("a frame is larger than MAX_FRAME_SIZE")]
    FrameTooLarge,
    /// A frame whose length its type does not allow.
    #[error("a frame has a length that its type does not allow")]
    FrameLength,
    /// A frame on stream 0 that belongs on a stream, or the other way round.
    #[error("a frame is on a stream that its type does not allow")]
    FrameStream,
    /// Padding as long as the payload, or longer.
    #[error("padding is longer than the payload")]
    Padding,
    /// A field block was interrupted, or a CONTINUATION continues none.
    #[error("a field block is not contiguous")]
    Continuation,
    /// PUSH_PROMISE, which is disabled.
    #[error("PUSH_PROMISE although push is disabled")]
    Push,
    /// A setting with a value that is not allowed.
    #[error("invalid value of setting {0:#x}")]
    Setting(u16),
    /// An INITIAL_WINDOW_SIZE above 2^31-1.
    #[error("initial window size above 2^31-1")]
    InitialWindow,
    /// A frame for a stream that was never opened, or cannot be opened by the peer.
    #[error("a frame is for an idle stream")]
    IdleStream,
    /// A frame after END_STREAM, or after a reset by the peer.
    #[error("a frame is for a stream that its sender has closed")]
    ClosedStream,
    /// A new stream below one that was opened before.
    #[error("stream ids do not increase")]
    StreamOrder,
    /// More streams than MAX_CONCURRENT_STREAMS.
    #[error("more streams than MAX_CONCURRENT_STREAMS")]
    TooManyStreams,
    /// DATA before the head of a response.
    #[error("DATA before a response")]
    DataBeforeHead,
    /// More DATA than there is credit.
    #[error("DATA beyond the flow-control window")]
    WindowExceeded,
    /// A WINDOW_UPDATE of 0.
    #[error("WINDOW_UPDATE of 0")]
    ZeroIncrement,
    /// A send window above 2^31-1.
    #[error("flow-control window above 2^31-1")]
    WindowOverflow,
    /// The last stream id of a second GOAWAY is above that of the first.
    #[error("the last stream id of a GOAWAY increased")]
    GoAwayIncreased,
    /// A field block that cannot be decoded.
    #[error(transparent)]
    Hpack(HpackError),
    /// A malformed message.
    #[error("malformed message: {0}")]
    Malformed(Malformed),
    /// A header list above our MAX_HEADER_LIST_SIZE.
    #[error("header list is larger than MAX_HEADER_LIST_SIZE")]
    HeaderListSize,
    /// Too much of something.
    #[error(transparent)]
    Abuse(Abuse),
}

impl Violation {
    /// The code that the peer is sent.
    #[must_use]
    pub fn code(self) -> Code {
        match self {
            Self::FrameTooLarge | Self::FrameLength => Code::FRAME_SIZE_ERROR,
            Self::InitialWindow | Self::WindowExceeded | Self::WindowOverflow => Code::FLOW_CONTROL_ERROR,
            Self::ClosedStream => Code::STREAM_CLOSED,
            Self::TooManyStreams => Code::REFUSED_STREAM,
            Self::Hpack(_) => Code::COMPRESSION_ERROR,
            Self::Abuse(_) => Code::ENHANCE_YOUR_CALM,
            _ => Code::PROTOCOL_ERROR,
        }
    }
}

/// The peer violated the protocol so that the connection ends. A GOAWAY with `code` was queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {reason}")]
pub struct ConnectionError {
    /// The code of the GOAWAY.
    pub code: Code,
    /// What was wrong.
    pub reason: Violation,
}

/// The peer violated the protocol on one stream. A RST_STREAM with `code` was queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stream {stream}: {code}: {reason}")]
pub struct StreamError {
    /// The stream.
    pub stream: StreamId,
    /// The code of the RST_STREAM.
    pub code: Code,
    /// What was wrong.
    pub reason: Violation,
}

/// Why something cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The stream is closed, was reset, or never existed.
    #[error("the stream is closed")]
    Closed,
    /// Not what the state of the stream or the role of the connection allows.
    #[error("not allowed in the state of the stream")]
    State,
    /// More than the peer has given credit for, or than its MAX_FRAME_SIZE.
    #[error("no flow-control credit")]
    Credit,
    /// As many streams are open as the peer allows.
    #[error("as many streams are open as the peer allows")]
    TooManyStreams,
    /// A GOAWAY was sent or received, the stream ids are used up, or the connection failed.
    #[error("the connection takes no new streams")]
    GoingAway,
    /// A name or value that HTTP/2 does not allow.
    #[error("invalid header field")]
    Field,
    /// A header list above the peer's MAX_HEADER_LIST_SIZE.
    #[error("header list is larger than the peer allows")]
    HeaderListSize,
}

// === impl ConnectionError ===

impl From<Violation> for ConnectionError {
    fn from(reason: Violation) -> Self {
        Self { code: reason.code(), reason }
    }
}

impl From<Abuse> for ConnectionError {
    fn from(abuse: Abuse) -> Self {
        Violation::Abuse(abuse).into()
    }
}

impl From<HpackError> for ConnectionError {
    fn from(error: HpackError) -> Self {
        match error {
            HpackError::Bomb => Abuse::HpackBomb.into(),
            other => Violation::Hpack(other).into(),
        }
    }
}
