//! What the receiving side reports.

use std::ops::Range;

use crate::code::Code;
use crate::error::Violation;
use crate::fields::Fields;
use crate::frame::StreamId;
use crate::head::{RequestHead, ResponseHead};

/// An event of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A client opened a stream. Of a server only.
    Request {
        /// The new stream.
        stream: StreamId,
        /// Its head: a CONNECT, or another request to be refused.
        head: RequestHead,
    },
    /// The server answered. Of a client only; interim responses are not reported.
    Response {
        /// The stream.
        stream: StreamId,
        /// The head.
        head: ResponseHead,
    },
    /// Bytes of a stream. They count against its window until they are granted again. A frame that arrives in several
    /// slices is reported in as many parts.
    Data {
        /// The stream.
        stream: StreamId,
        /// Where in the slice that was passed to this call they are.
        range: Range<usize>,
    },
    /// The peer ended its half of the stream. Follows a head, DATA or trailers that carried END_STREAM.
    End {
        /// The stream.
        stream: StreamId,
    },
    /// Trailers. RFC 9113 §8.5 has none in a CONNECT; they are read because they end a stream as properly as DATA.
    Trailers {
        /// The stream.
        stream: StreamId,
        /// The fields.
        fields: Fields,
    },
    /// The stream is gone, in both directions. Its bytes need not be granted any more.
    Reset {
        /// The stream.
        stream: StreamId,
        /// The error code.
        code: Code,
        /// What caused it.
        cause: ResetCause,
    },
    /// A stream for which there was no credit can send again.
    Window {
        /// The stream.
        stream: StreamId,
    },
    /// The answer to a PING of ours.
    Pong {
        /// Its payload.
        payload: [u8; 8],
    },
    /// The peer's settings were applied and acknowledged; limits may have changed.
    PeerSettings,
    /// The peer acknowledged our settings.
    SettingsAcknowledged,
    /// The peer ends the connection. Streams of ours above `last_stream` follow as [`Self::Reset`].
    GoAway {
        /// The last stream that the peer has processed or may still process.
        last_stream: StreamId,
        /// Why.
        code: Code,
        /// Debug data, of which a bounded part is kept.
        debug: Vec<u8>,
    },
}

/// What ended a stream before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetCause {
    /// The peer reset it.
    Peer,
    /// The peer's GOAWAY says that it was not processed, so that it may be retried elsewhere.
    GoAway,
    /// The peer violated the protocol, and we reset it.
    Violation(Violation),
}
