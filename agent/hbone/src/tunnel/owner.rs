//! The owner of a tunnel: reads its transport, opens records in place, hands bytes to their applications, and writes what
//! streams have queued.

mod parts;

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use isthmus_http2::budget::Abuse;
use isthmus_http2::{Code, Connection, Event, Role, StreamId};
use isthmus_record::{Opened, Opener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::chunk::with_receive_buffer;
use super::ending::Ending;
use super::idle::{Idle, Verdict};
use super::send_buffer::SendBuffer;
use super::state::{TunnelCore, TunnelState};
use super::transport::Link;
use crate::error::TunnelError;
use crate::keepalive::Keepalive;
use crate::settings::Settings;

/// Reads of the transport in one turn, after which other tasks run.
const READS: usize = 4;

/// The transport of a tunnel and what reading from it takes. One task polls it.
#[derive(Debug)]
pub(crate) struct Owner<S> {
    core: Arc<TunnelCore>,
    io: S,
    opener: Option<Opener>,
    /// The beginning of a record whose rest has not arrived.
    partial: Vec<u8>,
    batch: Vec<(StreamId, Range<usize>)>,
    keepalive: Keepalive,
    last_tick: Instant,
    /// What had arrived behind the handshake was processed.
    started: bool,
    peer_closed: bool,
    /// Why nothing can be written any more.
    write_error: Option<TunnelError>,
    /// What was left after the last write.
    unwritten: usize,
    ending: Option<Ending>,
    idle: Idle,
    on_drop: EndsWithOwner,
}

/// A tunnel whose owner is aborted, or panics, must not keep its streams waiting.
#[derive(Debug)]
struct EndsWithOwner(Option<Arc<TunnelCore>>);

/// How often the budgets against abuse learn of the time.
const TICK: Duration = Duration::from_millis(100);

/// Whether there may be more to read.
#[derive(PartialEq, Eq)]
enum Read {
    Some,
    Blocked,
}

// === impl Owner ===

impl<S: AsyncRead + AsyncWrite + Unpin> Owner<S> {
    pub(crate) fn new(link: Link<S>, http2: Connection, settings: &Settings) -> Self {
        let Link { io, keys } = link;
        let (sealer, opener, partial) = match keys {
            Some(keys) => (Some(keys.sealer), Some(keys.opener), keys.received),
            None => (None, None, Vec::new()),
        };
        let core = Arc::new(TunnelCore::new(http2, SendBuffer::new(sealer), settings));
        let on_drop = EndsWithOwner::new(&core);
        Self {
            core,
            io,
            opener,
            partial,
            batch: Vec::new(),
            keepalive: Keepalive::new(settings),
            last_tick: Instant::now(),
            started: false,
            peer_closed: false,
            write_error: None,
            unwritten: 0,
            ending: None,
            idle: Idle::new(settings),
            on_drop,
        }
    }

    pub(crate) fn core(&self) -> &Arc<TunnelCore> {
        &self.core
    }

    /// Runs until the tunnel has ended. [`TunnelError::Closed`] is a proper end if no stream was open, and after
    /// [`TunnelError::HandedOver`] the owner is to be [left](Owner::hand_over) to the tunnel's state.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<TunnelError> {
        if self.core.is_stopping() && self.ending.is_none() {
            return Poll::Ready(TunnelError::HandedOver);
        }
        if self.ending.is_none()
            && let Err(error) = self.turn(cx)
        {
            self.end(error);
        }
        let written = if self.write_error.is_none() { self.poll_write(cx) } else { Poll::Pending };
        if let Some(ending) = &mut self.ending {
            let unwritten = self.core.lock().send_buffer.len();
            if unwritten < std::mem::replace(&mut self.unwritten, unwritten) {
                ending.record_progress();
            }
            return ending.poll(cx, &mut self.io, written.map_err(drop), self.peer_closed);
        }
        if let Poll::Ready(Err(error)) = written {
            // What the peer sent before is still to be read: the last bytes of a response, or why it closed.
            self.write_error = Some(error);
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Ends the tunnel with a GOAWAY, for as long as the peer reads.
    pub(crate) fn close(&mut self, error: TunnelError) {
        if self.ending.is_none() {
            self.core.lock().http2.send_goaway(Code::NO_ERROR, &[]);
            self.end(error);
        }
    }

    /// Ends the tunnel with a GOAWAY before anything was served, for as long as the peer reads.
    pub(crate) fn refuse(&mut self, why: &str) {
        self.core.lock().http2.send_goaway(Code::ENHANCE_YOUR_CALM, why.as_bytes());
        self.end(TunnelError::Forced);
    }

    /// The tunnel ends once what is queued was written.
    fn end(&mut self, error: TunnelError) {
        let error = self.write_error.take().unwrap_or(error);
        let error = self.core.close_reason.record(error).clone();
        let mut state = self.core.lock();
        let state = &mut *state;
        if matches!(error, TunnelError::KeepaliveTimeout(_)) {
            state.http2.send_goaway(Code::NO_ERROR, &[]);
        }
        // The send buffer fails only by the key's end, with which nothing more can be said.
        let _ = state.send_buffer.push_output(&mut state.http2);
        let _ = state.send_buffer.close();
        state.end(&error);
        self.ending = Some(Ending::new(error));
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Result<(), TunnelError> {
        if !std::mem::replace(&mut self.started, true) {
            self.process_received()?;
        }
        self.tick()?;
        for turn in 0.. {
            if self.read(cx)? == Read::Blocked {
                break;
            }
            if turn + 1 == READS {
                cx.waker().wake_by_ref();
                break;
            }
        }
        let core = Arc::clone(&self.core);
        let mut state = core.lock();
        if self.keepalive.poll(cx)? {
            state.http2.ping(*b"isthmus\0");
        }
        match &state.owner {
            Some(owner) if owner.will_wake(cx.waker()) => {}
            _ => state.owner = Some(cx.waker().clone()),
        }
        if state.is_starved() {
            state.balance();
        }
        self.end_of_turn(&mut state)
    }

    /// Before the reads: what an honest peer sends after a silence must find its budgets.
    fn tick(&mut self) -> Result<(), TunnelError> {
        let since = self.last_tick.elapsed();
        if since < TICK {
            return Ok(());
        }
        self.last_tick += since;
        let mut state = self.core.lock();
        state.http2.tick(since);
        let resets = state.http2.take_barren_resets();
        match &self.idle.peer {
            Some(peer) if resets > 0 && !peer.try_spend_resets(resets) => {
                Err(TunnelError::Protocol(state.http2.refuse_abuse(Abuse::BarrenReset).code))
            }
            _ => Ok(()),
        }
    }

    /// Whether the tunnel is to end.
    fn end_of_turn(&mut self, state: &mut TunnelState) -> Result<(), TunnelError> {
        if state.has_streams() {
            self.idle.record_stream();
            return if self.peer_closed { Err(end_reason(state)) } else { Ok(()) };
        }
        if state.closing || state.is_hoarding() {
            state.closing = true;
            state.http2.drain();
        }
        if state.http2.role() == Role::Server {
            match self.idle.verdict() {
                Verdict::Keep => {}
                Verdict::Drain => state.http2.drain(),
                Verdict::End => return Err(TunnelError::Closed),
            }
        }
        if self.peer_closed || state.http2.is_finished() { Err(end_reason(state)) } else { Ok(()) }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TunnelError>> {
        let mut state = self.core.lock();
        let state = &mut *state;
        if let Err(error) = state.push_output() {
            return Poll::Ready(Err(TunnelError::from_io(&error)));
        }
        let written = state.send_buffer.poll_write(&mut self.io, cx);
        state.release_blocked();
        match written {
            Poll::Ready(Ok(())) => Pin::new(&mut self.io).poll_flush(cx),
            written => written,
        }
        .map_err(|error| TunnelError::from_io(&error))
    }

    /// One read of the transport.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<Read, TunnelError> {
        if self.peer_closed || self.core.is_stopping() {
            return Ok(Read::Blocked);
        }
        with_receive_buffer(|buffer| {
            let kept = self.partial.len();
            buffer[..kept].copy_from_slice(&self.partial);
            let mut into = ReadBuf::new(&mut buffer[kept..]);
            match Pin::new(&mut self.io).poll_read(cx, &mut into) {
                Poll::Pending => return Ok(Read::Blocked),
                Poll::Ready(Err(error)) => return Err(TunnelError::from_io(&error)),
                Poll::Ready(Ok(())) => {}
            }
            let count = into.filled().len();
            if count == 0 {
                self.peer_closed = true;
                return Ok(Read::Blocked);
            }
            self.keepalive.record_activity();
            self.process(&mut buffer[..kept + count])?;
            Ok(Read::Some)
        })
    }

    /// What had arrived behind the handshake.
    fn process_received(&mut self) -> Result<(), TunnelError> {
        let mut received = std::mem::take(&mut self.partial);
        self.process(&mut received)
    }

    /// Opens the records in `buffer` and keeps what is left of an incomplete one.
    fn process(&mut self, buffer: &mut [u8]) -> Result<(), TunnelError> {
        let core = Arc::clone(&self.core);
        let mut state = core.lock();
        if core.is_stopping() {
            // Between two reads: a request among these bytes would have to be answered here.
            self.partial = buffer.to_vec();
            return Ok(());
        }
        let processed = self.open(&mut state, buffer);
        state.deliver(buffer, &mut self.batch);
        let processed = processed?;
        self.partial.clear();
        if processed < buffer.len() {
            self.partial.extend_from_slice(&buffer[processed..]);
        } else if self.partial.capacity() > 0 {
            self.partial = Vec::new();
        }
        Ok(())
    }

    fn open(&mut self, state: &mut TunnelState, buffer: &mut [u8]) -> Result<usize, TunnelError> {
        let Some(opener) = &mut self.opener else {
            receive(state, buffer, 0..buffer.len(), &mut self.batch)?;
            return Ok(buffer.len());
        };
        let mut at = 0;
        loop {
            let refused = |state: &mut TunnelState, error: isthmus_record::Error| {
                let _ = state.send_buffer.alert(error.alert());
                // Under the same lock: nothing may be put behind the alert.
                let error = self.core.close_reason.record(TunnelError::Record(error)).clone();
                state.end(&error);
                error
            };
            let length = match Opener::record_len(&buffer[at..]) {
                Ok(Some(length)) if at + length <= buffer.len() => length,
                Ok(_) => return Ok(at),
                Err(error) => return Err(refused(state, error)),
            };
            match opener.open(&mut buffer[at..at + length]) {
                Ok(Opened::Data(range)) => {
                    receive(state, buffer, at + range.start..at + range.end, &mut self.batch)?;
                }
                Ok(Opened::KeyUpdate { requested: true }) => state.send_buffer.owe_key_update(),
                Ok(Opened::KeyUpdate { .. } | Opened::Ticket | Opened::Nothing) => {}
                Ok(Opened::CloseNotify) => {
                    self.peer_closed = true;
                    return Ok(buffer.len());
                }
                Ok(Opened::Alert(alert)) => return Err(TunnelError::Alert(alert)),
                Err(error) => return Err(refused(state, error)),
            }
            at += length;
        }
    }
}

// === impl EndsWithOwner ===

impl EndsWithOwner {
    fn new(core: &Arc<TunnelCore>) -> Self {
        Self(Some(Arc::clone(core)))
    }

    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for EndsWithOwner {
    fn drop(&mut self) {
        let Some(core) = self.0.take() else { return };
        let error = core.close_reason.record(TunnelError::Closed).clone();
        core.lock().end(&error);
    }
}

/// Passes plaintext to the connection. Data is collected in `batch`, which is delivered before any other event.
fn receive(
    state: &mut TunnelState,
    buffer: &[u8],
    range: Range<usize>,
    batch: &mut Vec<(StreamId, Range<usize>)>,
) -> Result<(), TunnelError> {
    let (start, mut at) = (range.start, 0);
    let record = &buffer[range];
    loop {
        match state.http2.receive(record, &mut at) {
            Ok(Some(Event::Data { stream, range })) => {
                batch.push((stream, start + range.start..start + range.end));
            }
            Ok(Some(event)) => {
                state.deliver(buffer, batch);
                state.handle(event);
            }
            Ok(None) => return Ok(()),
            Err(error) => return Err(TunnelError::Protocol(error.code)),
        }
    }
}

/// Why a tunnel that no one failed ends.
fn end_reason(state: &TunnelState) -> TunnelError {
    match &state.goaway {
        Some((code, debug)) if *code != Code::NO_ERROR => {
            TunnelError::GoAway { reason: *code, detail: String::from_utf8_lossy(debug).into_owned() }
        }
        _ => TunnelError::Closed,
    }
}
