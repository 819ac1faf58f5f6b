//! One HTTP/2 connection as a value: bytes in, events out, control frames queued.
//!
//! Owns the state that the modules below work on: `receive` cuts the input into frames, `data`, `headers` and `control` act
//! on them, `send` is for the caller, `parts` takes a connection apart. Must not know sockets, clocks, tasks and TLS.

mod control;
mod data;
mod headers;
mod parts;
mod receive;
mod send;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use crate::budget::{Abuse, Budgets};
use crate::code::Code;
use crate::error::{ConnectionError, StreamError, Violation};
use crate::event::{Event, ResetCause};
use crate::flow::{DEFAULT_WINDOW, ReceiveWindow, SendWindow};
use crate::frame::{self, PREFACE, StreamId, kind};
use crate::hpack::decode::Decoder;
use crate::output::Output;
use crate::settings::{PeerSettings, Settings};
use crate::stream::{ClosedStreams, Ending, Half, Stream, Streams};

pub use parts::{InputParts, Parts, StreamParts};
pub use receive::{InputState, PendingBlock};

/// Which end of the connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Opens streams.
    Client,
    /// Answers them.
    Server,
}

/// How far a drain has come (RFC 9113 §6.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drain {
    /// Streams are accepted.
    Open,
    /// A first GOAWAY was sent; streams that were in flight are accepted until the client answers our PING.
    Announced,
    /// Streams above this one are ignored.
    Last(StreamId),
}

/// A connection. See the crate's documentation for how it is driven.
#[derive(Debug, Clone)]
pub struct Connection {
    role: Role,
    local: Settings,
    peer: PeerSettings,
    /// The peer's first SETTINGS have arrived.
    peer_seen: bool,
    /// The peer has acknowledged our SETTINGS, of which there is one.
    local_acknowledged: bool,
    /// Of a client: the id of its next stream. Of a server: one above the highest that was opened.
    next_stream: StreamId,
    /// The last stream of the peer's GOAWAY.
    goaway_received: Option<StreamId>,
    drain: Drain,
    send_window: SendWindow,
    receive_window: ReceiveWindow,
    /// The credit that the peer is to have at most: the caller's decision, which it makes again elsewhere.
    credit_goal: u32,
    /// Streams that the caller still works for.
    held_streams: usize,
    /// Streams that the peer reset before they carried DATA and that were not reported to the caller.
    barren_resets: u32,
    streams: Streams,
    closed: ClosedStreams,
    /// How many times a stream asked for credit and there was none.
    blocked_count: u64,
    budgets: Budgets,
    decoder: Decoder,
    /// The next field block starts with a table size update.
    owes_table_update: bool,
    input: receive::Input,
    output: Output,
    events: VecDeque<Event>,
    /// A field block while it is written.
    scratch: Vec<u8>,
    failed: Option<ConnectionError>,
}

/// Payload of the PING that a drain sends behind its first GOAWAY.
const DRAIN_PING: [u8; 8] = *b"drain\0\0\x01";

// === impl Connection ===

impl Connection {
    /// The client's end. Preface, SETTINGS and the window of the connection are queued; requests may follow at once.
    #[must_use]
    pub fn client(settings: Settings) -> Self {
        Self::new(Role::Client, settings)
    }

    /// The server's end. SETTINGS and the window of the connection are queued.
    #[must_use]
    pub fn server(settings: Settings) -> Self {
        Self::new(Role::Server, settings)
    }

    fn new(role: Role, settings: Settings) -> Self {
        let local = settings.bounded();
        let mut receive_window = ReceiveWindow::new(DEFAULT_WINDOW, DEFAULT_WINDOW);
        receive_window.grow(local.connection_window);
        let mut connection = Self {
            role,
            peer: PeerSettings::initial(local.initial_send_streams),
            peer_seen: false,
            local_acknowledged: false,
            next_stream: 1,
            goaway_received: None,
            drain: Drain::Open,
            send_window: SendWindow(i64::from(DEFAULT_WINDOW)),
            receive_window,
            credit_goal: u32::MAX,
            held_streams: 0,
            barren_resets: 0,
            streams: Streams::default(),
            closed: ClosedStreams::default(),
            blocked_count: 0,
            budgets: Budgets::new(local.max_concurrent_streams),
            decoder: Decoder::default(),
            owes_table_update: false,
            input: receive::Input::new(role),
            output: Output::default(),
            events: VecDeque::new(),
            scratch: Vec::new(),
            failed: None,
            local,
        };
        if role == Role::Client {
            connection.output.buffer().extend_from_slice(PREFACE);
        }
        let settings = connection.local.payload(role == Role::Server);
        frame::write(connection.output.buffer(), kind::SETTINGS, 0, 0, &settings);
        if let Some(increment) = connection.receive_window.announce_all() {
            frame::write(connection.output.buffer(), kind::WINDOW_UPDATE, 0, 0, &increment.to_be_bytes());
        }
        connection
    }

    /// Which end this is.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// The peer's settings; assumptions until its first SETTINGS arrived.
    #[must_use]
    pub fn peer_settings(&self) -> &PeerSettings {
        &self.peer
    }

    /// Streams with an open half.
    #[must_use]
    pub fn active_streams(&self) -> usize {
        self.streams.active()
    }

    /// Why the connection failed, if it did.
    #[must_use]
    pub fn error(&self) -> Option<&ConnectionError> {
        self.failed.as_ref()
    }

    /// Whether a drain is complete: a final GOAWAY was sent or one received, and no stream is left. What
    /// [`Self::output`] still holds is to be written before the transport is closed.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        let ending = matches!(self.drain, Drain::Last(_)) || self.goaway_received.is_some();
        ending && self.streams.active() == 0 && self.events.is_empty()
    }

    /// Time has passed: what was spent of the abuse budgets comes back, all of it in [`crate::budget::FULL_RETURN`].
    pub fn tick(&mut self, elapsed: Duration) {
        self.budgets.tick(elapsed);
    }

    /// How many streams the peer has reset before they carried DATA since the last call.
    pub fn take_barren_resets(&mut self) -> u32 {
        std::mem::take(&mut self.barren_resets)
    }

    /// Ends the connection, with a GOAWAY that says why, for what the peer does too much of on this and other connections.
    pub fn refuse_abuse(&mut self, kind: Abuse) -> ConnectionError {
        let error = ConnectionError::from(kind);
        self.fail(error);
        error
    }

    /// Whether the peer never opened, or cannot open, this stream.
    fn is_idle(&self, stream: StreamId) -> bool {
        stream.is_multiple_of(2) || stream >= self.next_stream
    }

    /// A new stream. Its receive window is the default until the peer has acknowledged our SETTINGS.
    fn new_stream(&self, receiving: Half, sending: Half) -> Stream {
        let known = if self.local_acknowledged { self.local.stream_window } else { DEFAULT_WINDOW };
        Stream {
            receiving,
            sending,
            send_window: SendWindow(i64::from(self.peer.initial_window_size)),
            receive_window: ReceiveWindow::new(self.local.stream_window, known),
            blocked: None,
            opened: self.budgets.steps(),
            carried: false,
        }
    }

    /// The peer's half of a stream has ended.
    fn close_receiving(&mut self, stream: StreamId) {
        self.events.push_back(Event::End { stream });
        let closed = self.streams.close(stream, |stream| stream.receiving = Half::Closed);
        self.after_close(stream, closed);
    }

    /// Our half of a stream has ended.
    fn close_sending(&mut self, stream: StreamId) {
        let closed = self.streams.close(stream, |stream| {
            (stream.sending, stream.blocked) = (Half::Closed, None);
        });
        self.after_close(stream, closed);
    }

    fn after_close(&mut self, stream: StreamId, closed: bool) {
        if closed {
            self.closed.remember(stream, Ending::Ended);
            if self.streams.get(stream).is_some_and(|stream| stream.receive_window.unreleased == 0) {
                self.streams.remove(stream);
            }
        }
    }

    /// Removes a stream before its end; what it received goes back to the window of the connection.
    fn remove_stream(&mut self, id: StreamId, ending: Ending) -> Option<Stream> {
        let stream = self.streams.remove(id)?;
        self.release_connection(stream.receive_window.unreleased);
        if !stream.is_closed() {
            self.closed.remember(id, ending);
        }
        Some(stream)
    }

    fn release_connection(&mut self, bytes: u32) {
        self.receive_window.release(bytes);
        self.receive_window.shrink_to(self.credit_goal);
        if let Some(increment) = self.receive_window.announce() {
            self.output.window_update(0, increment);
        }
    }

    /// The peer violated the protocol on a stream: it is reset, which is reported if the stream was.
    fn fail_stream(&mut self, error: StreamError) -> Result<(), ConnectionError> {
        let StreamError { stream, code, reason } = error;
        self.output.reset(stream, code);
        if self.remove_stream(stream, Ending::LocalReset).is_some() {
            let cause = ResetCause::Violation(reason);
            self.events.push_back(Event::Reset { stream, code, cause });
        } else {
            self.closed.remember(stream, Ending::LocalReset);
        }
        Ok(self.budgets.spend(Abuse::ProvokedReset, 1)?)
    }

    /// A frame for a stream that was closed before. Whether that is a violation depends on how it was closed: what was
    /// in flight when we reset a stream is ignored, within a budget.
    fn closed_frame(&mut self, stream: StreamId) -> Result<(), ConnectionError> {
        match self.closed.ending(stream) {
            Some(Ending::Ended) => Err(Violation::ClosedStream.into()),
            Some(Ending::PeerReset) => self.fail_stream(stream_error(stream, Violation::ClosedStream)),
            Some(Ending::LocalReset) | None => Ok(self.budgets.spend(Abuse::LateFrame, 1)?),
        }
    }

    /// What each stream returns to the budgets: the frames that honest peers send with one.
    fn earn_for_stream(&mut self) {
        self.budgets.earn(Abuse::Priority, 2);
        self.budgets.earn(Abuse::WindowUpdate, 4);
        self.budgets.earn(Abuse::LateFrame, 16);
    }

    /// Ends the connection with a GOAWAY.
    fn fail(&mut self, error: ConnectionError) {
        if self.failed.is_none() {
            self.failed = Some(error);
            let last = self.last_accepted();
            self.output.goaway(last, error.code, error.reason.to_string().as_bytes());
        }
    }

    /// The highest stream of the peer that was, or may have been, processed.
    fn last_accepted(&self) -> StreamId {
        match (self.role, self.drain) {
            (Role::Client, _) => 0,
            (Role::Server, Drain::Last(last)) => last,
            (Role::Server, _) => self.next_stream.saturating_sub(2),
        }
    }
}

fn stream_error(stream: StreamId, reason: Violation) -> StreamError {
    StreamError { stream, code: reason.code(), reason }
}

/// The part of a GOAWAY's debug data that is kept.
const MAX_DEBUG: usize = 1024;

fn goaway_event(last_stream: StreamId, code: Code, debug: &[u8]) -> Event {
    Event::GoAway { last_stream, code, debug: debug[..debug.len().min(MAX_DEBUG)].to_vec() }
}
