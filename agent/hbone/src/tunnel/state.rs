//! The state that a tunnel's owner and its streams share: the HTTP/2 connection, what is to be written, and each stream's
//! received bytes, end and wakers.
//!
//! Who changes it holds the lock and does no more than system calls that do not block. Must not know how a tunnel is dialled
//! or accepted.

mod credit;
mod parts;
mod rest;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use isthmus_http2::{self as http2, Code, Connection, Event, ResetCause, Role, SendError, StreamId};
use rustc_hash::FxBuildHasher;
use tokio::net::TcpStream;
use tokio::time::Instant;

use self::rest::Rest;
pub(crate) use self::rest::{StoppedCopy, take_apart};
use super::queue::ReceiveQueue;
use super::send_buffer::SendBuffer;
use super::window::{ConnectionWindow, RoundTrip, WindowUse};
use crate::byte_counter::ByteCounter;
use crate::close_reason::CloseReason;
use crate::error::{StreamError, TunnelError};
use crate::memory::{Account, LingerPermit, MemoryBudget};
use crate::settings::Settings;
use crate::socket_io;

/// Bytes that may wait to be written before streams are not read from any more.
const MAX_UNWRITTEN: usize = 1024 * 1024;
/// The PING that measures the round trip.
const RTT_PING: [u8; 8] = *b"rtt\0\0\0\0\0";
/// The same while a budget of memory is nearly spent: one buffer for messages.
const LEAST_UNWRITTEN: usize = 16_000;
/// The credit for the connection that HTTP/2 gives a peer unasked, and that it keeps when a budget is spent.
const LEAST_CREDIT: u32 = 65_535;
/// Buffers that one write to an application gathers.
const GATHER: usize = 64;

/// A tunnel as its owner and its streams see it.
pub(crate) struct TunnelCore {
    state: Mutex<TunnelState>,
    pub(crate) close_reason: CloseReason,
    memory: MemoryBudget,
    /// The owner stops, so that the tunnel can be taken apart. Set under the lock, and never unset.
    stopping: AtomicBool,
}

pub(crate) struct TunnelState {
    pub(super) http2: Connection,
    pub(super) send_buffer: SendBuffer,
    streams: HashMap<StreamId, StreamState, FxBuildHasher>,
    /// Requests that were not passed on yet.
    requests: VecDeque<(StreamId, http2::RequestHead)>,
    /// The owner, when it waits.
    pub(super) owner: Option<Waker>,
    /// Streams that wait for room in the send buffer.
    blocked: Vec<Waker>,
    /// No more streams will be opened by this end.
    pub(super) closing: bool,
    /// The peer's GOAWAY: its code and debug data.
    pub(super) goaway: Option<(Code, Vec<u8>)>,
    /// The peer's preface and settings have arrived.
    pub(crate) peer_is_ready: bool,
    ended: Option<TunnelError>,
    round_trip: RoundTrip,
    /// To which stream windows may grow.
    max_stream_window: u32,
    connection_window: ConnectionWindow,
    /// Bytes that the tunnel may hold.
    limit: u32,
    /// What all streams that there may be hold with windows that have not grown.
    reserved: u32,
    memory: Account,
    /// The window is smaller than it should be, as a budget is spent.
    starved: bool,
    /// How far the tunnel has come to rest.
    rest: Rest,
}

/// What the tunnel knows of one stream whose handle exists.
#[derive(Default)]
pub(crate) struct StreamState {
    /// The answer to our CONNECT.
    pub(crate) answer: Option<http2::ResponseHead>,
    /// Received bytes that were not taken.
    pub(crate) queue: ReceiveQueue,
    /// The slack of the queue that was counted.
    slack: usize,
    /// How the receiving half ended, behind the queue.
    pub(crate) end: Option<Result<(), StreamError>>,
    /// Why nothing can be sent any more, although our half was open.
    pub(crate) lost: Option<StreamError>,
    /// The peer says that it has not processed the stream.
    pub(crate) unprocessed: bool,
    window: WindowUse,
    /// By how much its window has grown.
    grown: u32,
    /// Our half has ended.
    pub(crate) finished: bool,
    /// Received bytes are thrown away: the application has stopped reading.
    pub(crate) discards: bool,
    /// Where received bytes go at once, if it takes them.
    pub(crate) sink: Option<Sink>,
    /// Waits for received bytes, the answer, or the end.
    pub(crate) reader: Option<Waker>,
    /// Waits for credit, or for the loss of the stream.
    pub(crate) writer: Option<Waker>,
    /// Both halves are over, and only the application is still read from.
    lingers: bool,
    /// What its copy has left, since the tunnel is taken apart.
    stopped: Option<StoppedCopy>,
}

/// The application of a stream.
pub(crate) struct Sink {
    pub(crate) tcp: Arc<TcpStream>,
    pub(crate) counter: Arc<dyn ByteCounter>,
    /// Bytes that were written.
    pub(crate) written: u64,
    /// The error of a write. A socket reports it once.
    pub(crate) error: Option<io::Error>,
}

/// What bounds one tunnel's memory: its bytes, and those of them that are kept for streams which have not grown.
struct Bounds {
    limit: usize,
    reserved: u32,
}

// === impl TunnelCore ===

impl TunnelCore {
    pub(super) fn new(http2: Connection, send_buffer: SendBuffer, settings: &Settings) -> Self {
        let Bounds { limit, reserved } = Bounds::new(http2.role(), settings);
        let mut state = TunnelState {
            http2,
            send_buffer,
            streams: HashMap::default(),
            requests: VecDeque::new(),
            owner: None,
            blocked: Vec::new(),
            closing: false,
            goaway: None,
            peer_is_ready: false,
            ended: None,
            round_trip: RoundTrip::default(),
            max_stream_window: settings.max_stream_window,
            connection_window: ConnectionWindow::new(initial_window(settings)),
            limit: u32::try_from(limit).unwrap_or(u32::MAX),
            reserved,
            memory: Account::new(&settings.memory, limit),
            starved: false,
            rest: Rest::default(),
        };
        state.balance();
        Self::with(state, settings)
    }

    fn with(state: TunnelState, settings: &Settings) -> Self {
        Self {
            state: Mutex::new(state),
            close_reason: CloseReason::default(),
            memory: settings.memory.clone(),
            stopping: AtomicBool::new(false),
        }
    }

    /// The right to let an application of the tunnel's pod linger.
    pub(crate) fn linger(&self) -> Option<LingerPermit> {
        self.memory.linger()
    }

    /// Whether the owner is to stop.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, TunnelState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for TunnelCore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelCore").finish_non_exhaustive()
    }
}

// === impl Bounds ===

impl Bounds {
    fn new(role: Role, settings: &Settings) -> Self {
        let streams = match role {
            Role::Client => u32::try_from(settings.client_max_streams).unwrap_or(u32::MAX),
            Role::Server => settings.server_max_streams,
        };
        Self {
            limit: settings.tunnel_memory.min(settings.memory.limit() / 3),
            reserved: settings.stream_window.saturating_mul(streams),
        }
    }
}

/// With which a connection's window begins.
fn initial_window(settings: &Settings) -> u32 {
    settings.connection_window.max(LEAST_CREDIT)
}

// === impl TunnelState ===

impl TunnelState {
    /// There is something to be written, or a limit to be looked at.
    pub(crate) fn wake_owner(&self) {
        if let Some(owner) = &self.owner {
            owner.wake_by_ref();
        }
    }

    /// How much a stream may send now. If nothing, `waker` is woken when there is room in the send buffer, or the stream's
    /// writer when there is credit.
    pub(crate) fn credit(&mut self, id: StreamId, waker: &Waker) -> Option<usize> {
        let unwritten = self.send_buffer.len();
        let is_tight = unwritten > 0 && self.memory.is_tight();
        if unwritten >= if is_tight { LEAST_UNWRITTEN } else { MAX_UNWRITTEN } {
            if !self.blocked.iter().any(|blocked| blocked.will_wake(waker)) {
                self.blocked.push(waker.clone());
            }
            return None;
        }
        let credit = self.http2.send_credit(id);
        if credit == 0 {
            self.http2.reserve_data(id, 1);
        }
        let credit = if is_tight { credit.min(LEAST_UNWRITTEN) } else { credit };
        (credit > 0).then_some(credit)
    }

    /// Takes what HTTP/2 has queued, unless the peer does not read: then it stays where its amount is limited.
    pub(super) fn push_output(&mut self) -> io::Result<()> {
        if self.send_buffer.len() < MAX_UNWRITTEN {
            self.send_buffer.push_output(&mut self.http2)
        } else {
            Ok(())
        }
    }

    /// The send buffer was written: streams that waited for room go on.
    pub(super) fn release_blocked(&mut self) {
        if self.send_buffer.len() < MAX_UNWRITTEN / 2 {
            self.blocked.drain(..).for_each(Waker::wake);
        }
        let unwritten = self.send_buffer.allocated();
        if unwritten != self.memory.unwritten {
            self.memory.unwritten = unwritten;
            self.memory.settle();
        }
    }

    pub(crate) fn stream(&mut self, id: StreamId) -> Option<&mut StreamState> {
        self.streams.get_mut(&id)
    }

    /// Queues bytes of a stream, for which there must be credit.
    pub(crate) fn send(&mut self, id: StreamId, data: &[u8]) -> io::Result<()> {
        self.send_buffer.push_data(&mut self.http2, id, data)?;
        self.wake_owner();
        Ok(())
    }

    /// Reads bytes of a stream straight into the send buffer: up to `slots` records, at most `limit` bytes, for which there
    /// must be credit. Returns what `read` returns.
    pub(crate) fn send_from(
        &mut self,
        id: StreamId,
        (slots, limit): (usize, usize),
        read: impl FnOnce(&mut [IoSliceMut<'_>]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let count = self.send_buffer.read_frames(&mut self.http2, id, (slots, limit), read)?;
        if count > 0 {
            self.wake_owner();
        }
        Ok(count)
    }

    pub(super) fn add_stream(&mut self, id: StreamId) {
        let mut stream = StreamState::default();
        if let Some(error) = &self.ended {
            let lost = StreamError::Lost(error.clone());
            (stream.lost, stream.end) = (Some(lost.clone()), Some(Err(lost)));
        }
        self.streams.insert(id, stream);
        self.http2.set_held_streams(self.streams.len());
    }

    pub(super) fn has_streams(&self) -> bool {
        !self.streams.is_empty() || !self.requests.is_empty()
    }

    /// The handle of a stream is gone: a stream that has not ended is reset.
    pub(super) fn remove_stream(&mut self, id: StreamId) {
        if self.release_stopped(id) {
            return;
        }
        let Some(stream) = self.streams.remove(&id) else { return };
        self.rest.wake();
        self.connection_window.release(stream.grown);
        if self.streams.is_empty() {
            self.connection_window.reset();
            // What a burst has needed is not kept.
            self.streams = HashMap::default();
        }
        self.http2.set_held_streams(self.streams.len());
        self.memory.slack -= stream.slack;
        // A server that has said all it has to say only wants no more (RFC 9113 §8.1). For a stream that has ended in both
        // directions this sends nothing, and releases what was not taken.
        let only_unread = stream.finished && self.http2.role() == Role::Server;
        self.http2.reset(id, if only_unread { Code::NO_ERROR } else { Code::CANCEL });
        self.balance();
        self.wake_owner();
    }

    /// Sends a CONNECT.
    pub(crate) fn open(&mut self, authority: &str, fields: &[(&str, &str)]) -> Result<StreamId, SendError> {
        let id = self.http2.send_connect(authority, fields)?;
        self.add_stream(id);
        self.wake_owner();
        Ok(id)
    }

    /// Whether streams can be opened, now or once others have ended.
    pub(crate) fn is_open(&self) -> bool {
        let can_open = self.http2.can_open();
        !self.is_closing() && matches!(can_open, Ok(()) | Err(SendError::TooManyStreams))
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing || self.ended.is_some() || self.rest.has_begun()
    }

    /// Streams that the peer allows.
    pub(crate) fn peer_limit(&self) -> usize {
        let limit = if self.is_closing() { 0 } else { self.http2.peer_settings().max_concurrent_streams };
        usize::try_from(limit).unwrap_or(usize::MAX)
    }

    /// This end opens no more streams: the tunnel ends with the last one.
    pub(crate) fn close(&mut self) {
        self.closing = true;
        self.wake_owner();
    }

    /// Ends our half of a stream.
    ///
    /// # Errors
    /// When the stream was reset or the tunnel lost.
    pub(crate) fn finish(&mut self, id: StreamId) -> Result<(), StreamError> {
        let Some(stream) = self.streams.get_mut(&id) else { return Err(StreamError::Finished) };
        if let Some(lost) = &stream.lost {
            return Err(lost.clone());
        }
        stream.finished = true;
        let ended = self.http2.end_stream(id).map_err(|_| StreamError::Finished);
        self.wake_owner();
        ended
    }

    /// The next request that was not passed on yet. One that arrives while the tunnel comes to rest goes with it.
    pub(crate) fn next_request(&mut self) -> Option<(StreamId, http2::RequestHead)> {
        if self.rest.has_begun() { None } else { self.requests.pop_front() }
    }

    /// How many streams are open.
    pub(crate) fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// Tells the peer to open no more streams: the tunnel ends with the last one.
    pub(crate) fn drain(&mut self) {
        self.http2.drain();
        self.wake_owner();
    }

    /// Answers a request; with another status than 200 this ends our half.
    ///
    /// # Errors
    /// When the stream was reset or the tunnel lost.
    pub(crate) fn answer(
        &mut self,
        id: StreamId,
        status: u16,
        fields: &[(&str, &str)],
    ) -> Result<(), StreamError> {
        let Some(stream) = self.streams.get_mut(&id) else { return Err(StreamError::Finished) };
        if let Some(lost) = &stream.lost {
            return Err(lost.clone());
        }
        let is_last = status != 200;
        self.http2.send_response(id, status, fields, is_last).map_err(|_| StreamError::Finished)?;
        stream.finished = is_last;
        self.wake_owner();
        Ok(())
    }

    /// Resets a stream in both directions.
    pub(crate) fn reset(&mut self, id: StreamId, reason: Code) {
        self.http2.reset(id, reason);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.finished = true;
            stream.lost.get_or_insert(StreamError::Reset(reason));
            stream.end.get_or_insert(Err(StreamError::Reset(reason)));
            stream.wake();
        }
        self.wake_owner();
    }

    /// Bytes of a stream were taken: the peer may send as many more.
    pub(crate) fn grant(&mut self, id: StreamId, bytes: usize) {
        if bytes > 0 {
            self.grant_credit(id, bytes);
            self.balance();
            if !self.http2.output().is_empty() {
                self.wake_owner();
            }
        }
    }

    /// The tunnel has ended: so have its streams.
    pub(super) fn end(&mut self, error: &TunnelError) {
        self.ended = Some(error.clone());
        for stream in self.streams.values_mut() {
            let lost = StreamError::Lost(error.clone());
            // A stream that was reset before keeps its own reason.
            if !(stream.finished && matches!(stream.end, Some(Ok(())))) {
                stream.lost.get_or_insert_with(|| lost.clone());
            }
            stream.end.get_or_insert(Err(lost));
            stream.wake();
        }
        self.blocked.drain(..).for_each(Waker::wake);
        self.rest.wake();
    }

    /// Delivers received bytes, which lie in `buffer`, in the order of `batch` within each stream.
    pub(super) fn deliver(&mut self, buffer: &[u8], batch: &mut Vec<(StreamId, Range<usize>)>) {
        if batch.first().is_some_and(|(first, _)| batch.iter().any(|(id, _)| id != first)) {
            batch.sort_by_key(|(id, range)| (*id, range.start));
        }
        for part in batch.chunk_by(|(one, _), (other, _)| one == other) {
            let Some((id, _)) = part.first() else { continue };
            let mut written = 0;
            if let Some(stream) = self.streams.get_mut(id) {
                written = stream.deliver(buffer, part);
            }
            self.count_slack(*id);
            if written > 0 {
                self.grant_credit(*id, written);
            }
        }
        if !batch.is_empty() {
            batch.clear();
            self.balance();
        }
    }

    /// Handles an event other than data.
    pub(super) fn handle(&mut self, event: Event) {
        match event {
            Event::Request { stream, head } => {
                self.add_stream(stream);
                self.requests.push_back((stream, head));
            }
            Event::Response { stream, head } => self.update(stream, |stream| stream.answer = Some(head)),
            Event::End { stream } => self.update(stream, |stream| {
                stream.end.get_or_insert(Ok(()));
            }),
            Event::Reset { stream, code, cause } => self.update(stream, |stream| {
                let error = StreamError::Reset(code);
                stream.unprocessed = cause == ResetCause::GoAway;
                stream.lost.get_or_insert_with(|| error.clone());
                stream.end.get_or_insert(Err(error));
            }),
            Event::Window { stream } => {
                if let Some(stream) = self.streams.get_mut(&stream) {
                    stream.writer.take().into_iter().for_each(Waker::wake);
                }
            }
            Event::PeerSettings => {
                self.peer_is_ready = true;
                self.rest.wake();
            }
            Event::GoAway { code, debug, .. } => self.goaway = Some((code, debug)),
            Event::Pong { payload: RTT_PING } => self.round_trip.finish(Instant::now()),
            Event::Data { .. }
            | Event::Trailers { .. }
            | Event::Pong { .. }
            | Event::SettingsAcknowledged => {}
        }
    }

    fn update(&mut self, id: StreamId, change: impl FnOnce(&mut StreamState)) {
        if let Some(stream) = self.streams.get_mut(&id) {
            change(stream);
            stream.wake();
        }
    }
}

// === impl StreamState ===

impl StreamState {
    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }

    /// Writes to the application what it takes at once and queues the rest. Returns what was written.
    fn deliver(&mut self, buffer: &[u8], parts: &[(StreamId, Range<usize>)]) -> usize {
        let total: usize = parts.iter().map(|(_, range)| range.len()).sum();
        if self.discards {
            return total;
        }
        let mut written = 0;
        if let Some(sink) = self.sink.as_mut().filter(|sink| self.queue.is_empty() && sink.error.is_none()) {
            for parts in parts.chunks(GATHER) {
                let mut slices = [IoSlice::new(&[]); GATHER];
                for (slice, (_, range)) in slices.iter_mut().zip(parts) {
                    *slice = IoSlice::new(&buffer[range.clone()]);
                }
                let wanted: usize = parts.iter().map(|(_, range)| range.len()).sum();
                let count = sink.write(&slices[..parts.len()]);
                written += count;
                if count < wanted {
                    break;
                }
            }
        }
        if written < total {
            let mut skip = written;
            for (_, range) in parts {
                let from = skip.min(range.len());
                skip -= from;
                if from < range.len() {
                    self.queue.push(&buffer[range.start + from..range.end]);
                }
            }
            self.reader.take().into_iter().for_each(Waker::wake);
        }
        written
    }
}

// === impl Sink ===

impl Sink {
    /// Writes what the socket takes at once. An error is kept.
    pub(crate) fn write(&mut self, slices: &[IoSlice<'_>]) -> usize {
        let count = match socket_io::write(&self.tcp, slices) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => {
                self.error = Some(error);
                0
            }
        };
        self.written += count as u64;
        self.counter.received(count as u64);
        count
    }
}
