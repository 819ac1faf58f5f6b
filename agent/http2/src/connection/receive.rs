//! Cuts the input into frames.
//!
//! Payload of DATA is passed on where it is; other payloads are read where they are if they are complete in one slice, and
//! are collected in a buffer of at most one frame otherwise. Which frames may follow each other is decided here, what they
//! do is decided in `data`, `headers` and `control`.

use super::{Connection, Role};
use crate::budget::Abuse;
use crate::error::{ConnectionError, Violation};
use crate::event::Event;
use crate::frame::{FrameHeader, HEADER_LEN, PREFACE, StreamId, flag, kind};

/// Capacity that the buffer of split frames keeps between frames.
const KEPT: usize = 64;

/// How many times more than answers a server queues with the heads of responses.
const HEADS_FACTOR: usize = 16;

/// What the next byte of the input belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputState {
    /// The client's preface.
    Preface,
    /// The header of a frame.
    Header,
    /// The payload of a frame that is read as a whole.
    Payload(FrameHeader),
    /// The payload of DATA.
    Data {
        /// Its stream.
        stream: StreamId,
        /// Bytes of payload and padding that are missing.
        left: u32,
        /// Padding among them; `None` while its length is the next byte.
        padding: Option<u32>,
        /// Whether the frame ends the stream.
        end_stream: bool,
    },
    /// A payload that is not read.
    Skip(u32),
}

/// A field block that is not complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingBlock {
    /// The stream.
    pub stream: StreamId,
    /// Whether it ends the stream.
    pub end_stream: bool,
    /// What has arrived.
    pub block: Vec<u8>,
    /// CONTINUATION frames that have arrived.
    pub continuations: u32,
}

/// The state of the parser.
#[derive(Debug, Clone)]
pub(super) struct Input {
    pub(super) state: InputState,
    /// The beginning of what is read as a whole and was split.
    pub(super) partial: Vec<u8>,
    pub(super) block: Option<PendingBlock>,
}

// === impl Input ===

impl Input {
    pub(super) fn new(role: Role) -> Self {
        let state = if role == Role::Server { InputState::Preface } else { InputState::Header };
        Self { state, partial: Vec::new(), block: None }
    }

    /// The next `length` bytes as a whole: from `record` if they are all in it, else from the buffer once it has them.
    /// `None` when the record ended before; it is then in the buffer up to its end.
    fn whole(&mut self, record: &[u8], at: &mut usize, length: usize) -> Option<Whole> {
        let rest = record.get(*at..).unwrap_or_default();
        if self.partial.is_empty() && rest.len() >= length {
            *at += length;
            return Some(Whole::InPlace(*at - length));
        }
        let part = rest.len().min(length - self.partial.len());
        self.partial.extend_from_slice(&rest[..part]);
        *at += part;
        (self.partial.len() == length).then(|| Whole::Collected(std::mem::take(&mut self.partial)))
    }

    /// Takes a buffer back for the next split frame.
    fn give_back(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() <= KEPT {
            buffer.clear();
            self.partial = buffer;
        }
    }
}

/// Where bytes that were asked for as a whole are.
enum Whole {
    InPlace(usize),
    Collected(Vec<u8>),
}

// === impl Connection ===

impl Connection {
    /// Reads on in `record` from `at`, up to the next event; `at` is advanced behind what was read. `None` means that the
    /// record was read to its end. It may begin and end anywhere in a frame. Ranges in [`Event::Data`] are of `record`.
    ///
    /// Other methods may be called between two events.
    ///
    /// # Errors
    /// When the peer has violated the protocol. A GOAWAY was queued; the rest of the input is of no use, and each further
    /// call returns the same error.
    pub fn receive(&mut self, record: &[u8], at: &mut usize) -> Result<Option<Event>, ConnectionError> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        *at = (*at).min(record.len());
        self.advance(record, at).inspect_err(|error| self.fail(*error))
    }

    fn advance(&mut self, record: &[u8], at: &mut usize) -> Result<Option<Event>, ConnectionError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            self.check_output()?;
            match self.input.state {
                InputState::Preface => {
                    if !self.preface(record, at)? {
                        return Ok(None);
                    }
                }
                InputState::Header => {
                    let Some(whole) = self.input.whole(record, at, HEADER_LEN) else { return Ok(None) };
                    let header = self.header(record, whole);
                    self.start_frame(header)?;
                }
                InputState::Payload(header) => {
                    let length = header.length as usize;
                    let Some(whole) = self.input.whole(record, at, length) else { return Ok(None) };
                    self.input.state = InputState::Header;
                    match whole {
                        Whole::InPlace(start) => self.frame(header, &record[start..start + length])?,
                        Whole::Collected(buffer) => {
                            self.frame(header, &buffer)?;
                            self.input.give_back(buffer);
                        }
                    }
                }
                InputState::Data { stream, left, padding, end_stream } => {
                    let rest = record.get(*at..).unwrap_or_default();
                    let taken = self.data_part(rest, *at, (stream, left, padding, end_stream))?;
                    let Some(taken) = taken else { return Ok(None) };
                    *at += taken;
                }
                InputState::Skip(left) => {
                    let part = record.len().saturating_sub(*at).min(left as usize);
                    *at += part;
                    let left = left - u32::try_from(part).unwrap_or(left);
                    if left > 0 {
                        self.input.state = InputState::Skip(left);
                        return Ok(None);
                    }
                    self.input.state = InputState::Header;
                }
            }
        }
    }

    /// A peer that does not read what it makes us send is cut off. The heads of responses count, but there may be more of
    /// them: their number depends on the application as well. A client's requests are its own doing.
    fn check_output(&self) -> Result<(), ConnectionError> {
        let most = self.local.max_queued_answers;
        let heads =
            self.role == Role::Server && self.output.bytes().len() > most.saturating_mul(HEADS_FACTOR);
        if heads || self.output.answers() > most { Err(Abuse::Output.into()) } else { Ok(()) }
    }

    /// Compares the preface as it arrives, so that another protocol is noticed with its first byte. True when complete.
    fn preface(&mut self, record: &[u8], at: &mut usize) -> Result<bool, ConnectionError> {
        let whole = self.input.whole(record, at, PREFACE.len());
        let bytes = match &whole {
            Some(Whole::InPlace(start)) => &record[*start..*start + PREFACE.len()],
            Some(Whole::Collected(buffer)) => buffer,
            None => &self.input.partial,
        };
        if !PREFACE.starts_with(bytes) {
            return Err(Violation::Preface.into());
        }
        if whole.is_some() {
            self.input.state = InputState::Header;
        }
        Ok(whole.is_some())
    }

    fn header(&mut self, record: &[u8], whole: Whole) -> FrameHeader {
        let mut bytes = [0; HEADER_LEN];
        match whole {
            Whole::InPlace(start) => bytes.copy_from_slice(&record[start..start + HEADER_LEN]),
            Whole::Collected(buffer) => {
                bytes.copy_from_slice(&buffer);
                self.input.give_back(buffer);
            }
        }
        FrameHeader::parse(bytes)
    }

    /// Checks what can be checked of a frame without its payload, and chooses how the payload is read.
    fn start_frame(&mut self, header: FrameHeader) -> Result<(), ConnectionError> {
        let FrameHeader { length, kind, stream, .. } = header;
        if !self.peer_seen && (kind != kind::SETTINGS || header.has(flag::ACK)) {
            return Err(Violation::FirstFrame.into());
        }
        if length > self.local.max_frame_size {
            return Err(Violation::FrameTooLarge.into());
        }
        let expected = self.input.block.as_ref().map(|block| block.stream);
        if expected != (kind == kind::CONTINUATION).then_some(stream) {
            return Err(Violation::Continuation.into());
        }
        let on_connection = match kind {
            kind::DATA | kind::HEADERS | kind::PRIORITY | kind::RST_STREAM | kind::CONTINUATION => {
                Some(false)
            }
            kind::SETTINGS | kind::PING | kind::GOAWAY => Some(true),
            _ => None,
        };
        if on_connection.is_some_and(|connection| connection != (stream == 0)) {
            return Err(Violation::FrameStream.into());
        }
        let fits = match kind {
            kind::PRIORITY => length == 5,
            kind::RST_STREAM | kind::WINDOW_UPDATE => length == 4,
            kind::SETTINGS => length % 6 == 0 && !(header.has(flag::ACK) && length > 0),
            kind::PING => length == 8,
            kind::GOAWAY => length >= 8,
            _ => true,
        };
        if !fits {
            return Err(Violation::FrameLength.into());
        }
        match kind {
            kind::DATA => return self.start_data(header),
            kind::PUSH_PROMISE => return Err(Violation::Push.into()),
            kind::HEADERS..=kind::CONTINUATION => self.input.state = InputState::Payload(header),
            _ => {
                self.budgets.spend(Abuse::UnknownFrame, 1)?;
                self.input.state = InputState::Skip(length);
            }
        }
        Ok(())
    }

    fn frame(&mut self, header: FrameHeader, payload: &[u8]) -> Result<(), ConnectionError> {
        match header.kind {
            kind::HEADERS => self.headers_frame(header, payload),
            kind::CONTINUATION => self.continuation_frame(header, payload),
            kind::SETTINGS if header.has(flag::ACK) => self.settings_acknowledged(),
            kind::SETTINGS => self.settings_frame(payload),
            kind::PING => self.ping_frame(header, payload),
            kind::RST_STREAM => self.reset_frame(header.stream, payload),
            kind::GOAWAY => self.goaway_frame(payload),
            kind::WINDOW_UPDATE => self.window_update_frame(header.stream, payload),
            kind::PRIORITY => Ok(self.budgets.spend(Abuse::Priority, 1)?),
            _ => Ok(()),
        }
    }
}
