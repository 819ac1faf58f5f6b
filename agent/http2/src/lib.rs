//! HTTP/2 for CONNECT, both roles, without I/O (RFC 9113, RFC 7541).
//!
//! A [`Connection`] is a value. The caller owns the socket, the TLS session, the buffers and the clock:
//!
//! - *Receiving.* Plaintext goes to [`Connection::receive`] slice by slice, as it was decrypted, and comes back as
//!   [`Event`]s. Bytes of a stream are not copied: [`Event::Data`] is a range of the caller's slice. A DATA frame is never
//!   awaited as a whole.
//! - *Sending.* Heads and control frames collect in [`Connection::output`]. For the bytes of a stream the caller asks
//!   [`Connection::reserve_data`] how many it may send, puts them where they are encrypted, and writes
//!   [`Connection::data_header`] in front of them.
//! - *Flow control* follows use: bytes that a stream received become credit again with
//!   [`Connection::grant`]. Windows begin small and become larger with [`Connection::grow`].
//! - *Abuse.* Work that a peer causes without doing any has a budget for each published attack; see [`budget`]. The
//!   caller reports elapsed time with [`Connection::tick`], once a second or so. A peer that gives no credit, or never
//!   finishes what it began, is a matter of the caller's timers.
//! - *Moving.* [`Connection::into_parts`] takes a live connection apart into plain values, and [`Connection::from_parts`]
//!   puts it together again, in the same or another process.
//!
//! ```
//! use isthmus_http2::{Connection, Event, Settings};
//!
//! let mut client = Connection::client(Settings::default());
//! let mut server = Connection::server(Settings::default());
//! let stream = client.send_connect("10.0.0.1:80", &[("baggage", "service.name=web")])?;
//!
//! // What the client has queued, with five bytes of the stream behind it, as one record.
//! let mut record = client.output().to_vec();
//! client.consumed(record.len());
//! let count = client.reserve_data(stream, 5);
//! record.extend(client.data_header(stream, count, true)?);
//! record.extend(b"hello");
//!
//! let mut at = 0;
//! while let Some(event) = server.receive(&record, &mut at)? {
//!     match event {
//!         Event::Request { stream, head } => {
//!             assert_eq!(head.authority(), Some("10.0.0.1:80"));
//!             server.send_response(stream, 200, &[], false)?;
//!         }
//!         Event::Data { stream, range } => {
//!             assert_eq!(&record[range.clone()], b"hello");
//!             server.grant(stream, range.len() as u32);
//!         }
//!         Event::End { stream } => server.end_stream(stream)?,
//!         _ => {}
//!     }
//! }
//! assert_eq!(server.active_streams(), 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Not implemented, as no CONNECT needs it: push (disabled), priorities (read over), sending trailers and interim
//! responses, `content-length` checks, and extended CONNECT (RFC 8441). This crate knows no other crate of ours.

pub mod budget;
mod code;
mod connection;
mod error;
mod event;
mod fields;
mod flow;
mod frame;
mod head;
mod hpack;
mod output;
mod settings;
mod stream;

pub use code::Code;
pub use connection::{Connection, Drain, InputParts, InputState, Parts, PendingBlock, Role, StreamParts};
pub use error::{ConnectionError, SendError, StreamError, Violation};
pub use event::{Event, ResetCause};
pub use fields::Fields;
pub use flow::{ReceiveWindow, SendWindow};
pub use frame::{FrameHeader, HEADER_LEN, StreamId};
pub use head::{Malformed, RequestHead, ResponseHead, is_valid_name, is_valid_value};
pub use hpack::HpackError;
pub use hpack::decode::TableEntry;
pub use settings::{PeerSettings, Settings};
pub use stream::{Ending, Half, Stream};
