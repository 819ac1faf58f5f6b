//! What the caller sends: heads, DATA, credit, resets, pings, and the end of the connection.

use super::{Connection, DRAIN_PING, Drain, Role};
use crate::budget::Abuse;
use crate::code::Code;
use crate::error::SendError;
use crate::fields::FIELD_OVERHEAD;
use crate::flow::ReceiveWindow;
use crate::frame::{self, FrameHeader, HEADER_LEN, MAX_MAX_FRAME_SIZE, MAX_U31, StreamId, flag, kind};
use crate::head::{is_valid_name, is_valid_value};
use crate::hpack::{encode, static_table};
use crate::stream::{Ending, Half};

/// What a late frame of the peer costs is returned for each stream that we reset: it may have had as many in flight.
const IN_FLIGHT: u32 = 256;

impl Connection {
    // --- Output ---

    /// Heads and control frames that wait to be written. They must be written before DATA whose header is made later, and after
    /// DATA whose header was made before.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        self.output.bytes()
    }

    /// The first `count` bytes of [`Self::output`] were taken for writing.
    pub fn consumed(&mut self, count: usize) {
        self.output.consume(count);
    }

    // --- Heads ---

    /// Whether a request can be sent now.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn can_open(&self) -> Result<(), SendError> {
        if self.role == Role::Server {
            return Err(SendError::State);
        }
        let over = self.goaway_received.is_some() || self.drain != Drain::Open || self.failed.is_some();
        if over || self.next_stream > MAX_U31 {
            return Err(SendError::GoingAway);
        }
        let most = self.peer.max_concurrent_streams.min(MAX_U31) as usize;
        if self.streams.active() >= most { Err(SendError::TooManyStreams) } else { Ok(()) }
    }

    /// Sends a CONNECT.
    ///
    /// # Errors
    /// When no stream can be opened or a field is invalid; nothing was sent.
    pub fn send_connect(&mut self, authority: &str, fields: &[(&str, &str)]) -> Result<StreamId, SendError> {
        self.can_open()?;
        if authority.is_empty() || !authority.bytes().all(|byte| (0x21..=0x7e).contains(&byte)) {
            return Err(SendError::Field);
        }
        self.check_fields(fields, &[(":method", "CONNECT"), (":authority", authority)])?;
        let stream = self.next_stream;
        self.next_stream += 2;
        self.start_block();
        encode::named(static_table::METHOD, b"CONNECT", &mut self.scratch);
        encode::named(static_table::AUTHORITY, authority.as_bytes(), &mut self.scratch);
        self.finish_block(stream, fields, false);
        self.streams.insert(stream, self.new_stream(Half::AwaitsHead, Half::Open));
        self.earn_for_stream();
        Ok(stream)
    }

    /// Answers a request; `end_stream` if nothing follows.
    ///
    /// # Errors
    /// When the stream is gone or was answered, the status is not that of a final response, or a field is invalid.
    pub fn send_response(
        &mut self,
        stream: StreamId,
        status: u16,
        fields: &[(&str, &str)],
        end_stream: bool,
    ) -> Result<(), SendError> {
        let state = self.streams.live(stream).ok_or(SendError::Closed)?;
        if self.role != Role::Server || state.sending != Half::AwaitsHead || !(200..1000).contains(&status) {
            return Err(SendError::State);
        }
        self.check_fields(fields, &[(":status", "200")])?;
        self.start_block();
        encode::status(status, &mut self.scratch);
        self.finish_block(stream, fields, end_stream);
        self.budgets.earn(Abuse::RapidReset, 1);
        self.streams.close(stream, |stream| stream.sending = Half::Open);
        if end_stream {
            self.close_sending(stream);
        }
        Ok(())
    }

    fn check_fields(&self, fields: &[(&str, &str)], pseudo: &[(&str, &str)]) -> Result<(), SendError> {
        let valid =
            |(name, value): &(&str, &str)| is_valid_name(name.as_bytes()) && is_valid_value(value.as_bytes());
        if !fields.iter().all(valid) {
            return Err(SendError::Field);
        }
        let all = fields.iter().chain(pseudo);
        let size: usize = all.map(|(name, value)| name.len() + value.len() + FIELD_OVERHEAD).sum();
        let most = self.peer.max_header_list_size as usize;
        if size > most { Err(SendError::HeaderListSize) } else { Ok(()) }
    }

    fn start_block(&mut self) {
        self.scratch.clear();
        if std::mem::take(&mut self.owes_table_update) {
            encode::empty_table(&mut self.scratch);
        }
    }

    fn finish_block(&mut self, stream: StreamId, fields: &[(&str, &str)], end_stream: bool) {
        for (name, value) in fields {
            encode::literal(name.as_bytes(), value.as_bytes(), &mut self.scratch);
        }
        let size = self.peer.max_frame_size;
        frame::write_block(self.output.buffer(), stream, end_stream, &self.scratch, size);
        self.scratch = Vec::new();
    }

    // --- DATA ---

    /// How many bytes the peer's credit lets a stream send now, in any number of frames; 0 also when it is not open.
    #[must_use]
    pub fn send_credit(&self, stream: StreamId) -> usize {
        match self.streams.get(stream) {
            Some(state) if state.sending == Half::Open && self.failed.is_none() => {
                self.send_window.available().min(state.send_window.available())
            }
            _ => 0,
        }
    }

    /// How many of `want` bytes a stream may send in one DATA frame now. Nothing is taken from the windows before
    /// [`Self::data_header`]. When there is no credit, [`crate::Event::Window`] follows once there is.
    pub fn reserve_data(&mut self, stream: StreamId, want: usize) -> usize {
        let credit = self.send_credit(stream);
        if credit == 0 && want > 0 {
            self.block(stream);
        }
        credit.min(want).min(self.peer.max_frame_size as usize)
    }

    fn block(&mut self, stream: StreamId) {
        if let Some(state) = self.streams.live(stream)
            && state.sending == Half::Open
            && state.blocked.is_none()
        {
            self.blocked_count += 1;
            state.blocked = Some(self.blocked_count);
        }
    }

    /// The header of a DATA frame of `length` bytes of payload, which the caller must send behind it. Takes the credit.
    ///
    /// # Errors
    /// When the stream cannot send, or not as much.
    pub fn data_header(
        &mut self,
        stream: StreamId,
        length: usize,
        end_stream: bool,
    ) -> Result<[u8; HEADER_LEN], SendError> {
        let state = self.streams.live(stream).ok_or(SendError::Closed)?;
        match state.sending {
            Half::Open => {}
            Half::AwaitsHead => return Err(SendError::State),
            Half::Closed => return Err(SendError::Closed),
        }
        let available = state.send_window.available().min(self.send_window.available());
        let length32 = u32::try_from(length).unwrap_or(MAX_MAX_FRAME_SIZE + 1);
        if length > available || length32 > self.peer.max_frame_size {
            return Err(SendError::Credit);
        }
        state.carried |= length > 0;
        state.send_window.take(length);
        self.send_window.take(length);
        self.budgets.earn(Abuse::WindowUpdate, 4 + length32 / 256);
        self.budgets.earn(Abuse::Ping, u32::from(length > 0));
        if end_stream {
            self.close_sending(stream);
        }
        let flags = if end_stream { flag::END_STREAM } else { 0 };
        Ok(FrameHeader { length: length32, kind: kind::DATA, flags, stream }.encode())
    }

    /// Ends our half of a stream with an empty DATA frame.
    ///
    /// # Errors
    /// When it has ended already, or has no head yet.
    pub fn end_stream(&mut self, stream: StreamId) -> Result<(), SendError> {
        let header = self.data_header(stream, 0, true)?;
        self.output.buffer().extend_from_slice(&header);
        Ok(())
    }

    // --- Credit ---

    /// The application has processed `bytes` of a stream: the peer may send as many again. Credit is announced
    /// once it is a quarter of the window. Discarded bytes are to be granted too, unless the stream was reset.
    pub fn grant(&mut self, stream: StreamId, bytes: u32) {
        let Some(state) = self.streams.any(stream) else { return };
        let released = state.receive_window.release(bytes);
        let open = state.receiving != Half::Closed;
        let increment = if open { state.receive_window.announce() } else { None };
        let done = state.is_closed() && state.receive_window.unreleased == 0;
        if let Some(increment) = increment {
            self.output.window_update(stream, increment);
        }
        if done {
            self.streams.remove(stream);
        }
        self.release_connection(released);
    }

    /// Makes the receive window of a stream larger: a reader that takes a whole window in a round trip is held up by it.
    /// The window of a stream never becomes smaller.
    pub fn grow(&mut self, stream: StreamId, window: u32) {
        let Some(state) = self.streams.live(stream).filter(|state| state.receiving != Half::Closed) else {
            return;
        };
        state.receive_window.grow(window);
        if let Some(increment) = state.receive_window.announce() {
            self.output.window_update(stream, increment);
        }
    }

    /// Makes the receive window of the connection larger.
    pub fn grow_connection(&mut self, window: u32) {
        self.receive_window.grow(window);
        self.release_connection(0);
    }

    /// The credit that the peer is to have for the connection once everything was granted. Where it has more, the window
    /// becomes smaller as credit is used.
    pub fn set_credit_goal(&mut self, goal: u32) {
        self.credit_goal = goal;
        self.receive_window.shrink_to(goal);
    }

    /// The receive window of the connection as it is now.
    #[must_use]
    pub fn connection_window(&self) -> ReceiveWindow {
        self.receive_window
    }

    /// Size of a stream's receive window, and how many received bytes were not granted yet.
    #[must_use]
    pub fn receive_window(&self, stream: StreamId) -> Option<(u32, u32)> {
        self.streams.get(stream).map(|state| (state.receive_window.size, state.receive_window.unreleased))
    }

    /// How many streams of the peer the caller still works for, ended ones included. At twice the streams that the peer may
    /// have open, new ones are refused: what goes on behind the end of a stream keeps its slot.
    pub fn set_held_streams(&mut self, held: usize) {
        self.held_streams = held;
    }

    // --- Ends ---

    /// Ends a stream in both directions. Does nothing when it is gone already; bytes of a stream that has ended in both
    /// directions and were not granted yet are granted.
    pub fn reset(&mut self, stream: StreamId, code: Code) {
        if let Some(removed) = self.remove_stream(stream, Ending::LocalReset)
            && !removed.is_closed()
        {
            self.budgets.earn(Abuse::LateFrame, IN_FLIGHT);
            let payload = code.0.to_be_bytes();
            frame::write(self.output.buffer(), kind::RST_STREAM, 0, stream, &payload);
        }
    }

    /// Sends a PING; [`crate::Event::Pong`] is its answer.
    pub fn ping(&mut self, payload: [u8; 8]) {
        frame::write(self.output.buffer(), kind::PING, 0, 0, &payload);
    }

    /// Begins a drain. A server announces it, and sends the final GOAWAY once the client has answered a PING, so
    /// that no request in flight is lost; a client opens no more streams. [`Self::is_finished`] reports completion.
    pub fn drain(&mut self) {
        if self.drain != Drain::Open {
            return;
        }
        if self.role == Role::Client {
            self.send_goaway(Code::NO_ERROR, &[]);
            return;
        }
        self.drain = Drain::Announced;
        self.output.goaway(MAX_U31, Code::NO_ERROR, &[]);
        self.ping(DRAIN_PING);
    }

    /// The client has answered the PING of a drain.
    pub(super) fn drain_last(&mut self) {
        self.send_goaway(Code::NO_ERROR, &[]);
    }

    /// Sends the final GOAWAY: streams that the peer has opened so far go on, later ones are ignored. With an error code
    /// the caller closes the transport once the output was written.
    pub fn send_goaway(&mut self, code: Code, debug: &[u8]) {
        let last = self.last_accepted();
        self.drain = Drain::Last(last);
        self.output.goaway(last, code, debug);
    }
}
