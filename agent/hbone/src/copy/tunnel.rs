//! The copy between an application's connection and a stream: one state machine, polled by its own task.
//!
//! Bytes of the application are read straight into the tunnel's send buffer. Bytes of the stream are written by the tunnel's
//! owner as it receives them; this task only goes on where the application took less.

mod stop;

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use isthmus_http2::{Code as Reason, StreamId};
use socket2::SockRef;
use tokio::net::TcpStream;

use super::outcome::{CopyError, CopyOutcome, Side};
use crate::byte_counter::ByteCounter;
use crate::error::StreamError;
use crate::socket_io;
use crate::stream::Stream;
use crate::tunnel::{MAX_SLOTS, ReceiveQueue, Sink, StreamRef, TunnelState};

/// Received pieces that one write to the application gathers.
const GATHER: usize = 32;
/// Bytes that are read from the application in one turn, after which other tasks run.
const TURN: usize = 512 * 1024;
/// Payload of one record, about.
const SLOT: usize = 16 * 1024;

/// Application → stream.
#[derive(Debug)]
struct ToStream {
    bytes: u64,
    /// Records that the next read may fill: as many as the last one did, and twice that when it filled all.
    slots: usize,
    /// The application's FIN was passed on as END_STREAM.
    done: bool,
    /// The peer accepts no more data: it reset the stream, or the tunnel was lost.
    refused: Option<StreamError>,
}

/// The copy: both directions and the connections they share.
pub(super) struct Copy {
    tcp: Arc<TcpStream>,
    /// Dropping the copy before it is over resets the application.
    over: bool,
    /// Dropped with the copy: a stream that has not ended is reset.
    place: Arc<StreamRef>,
    counter: Arc<dyn ByteCounter>,
    to_stream: ToStream,
    /// What was written to the application, once it takes no more.
    received: u64,
    /// Stream → application has ended.
    to_app_done: bool,
    /// The side that closed first.
    closed_by: Option<Side>,
}

// === impl Copy ===

impl Copy {
    pub(super) fn new(tcp: Arc<TcpStream>, stream: Stream, counter: Arc<dyn ByteCounter>) -> Self {
        let place = stream.into_place();
        if let Some(known) = place.core.lock().stream(place.id) {
            let (tcp, counter) = (Arc::clone(&tcp), Arc::clone(&counter));
            known.sink = Some(Sink { tcp, counter, written: 0, error: None });
        }
        place.core.lock().copy_started();
        let to_stream = ToStream { bytes: 0, slots: 1, done: false, refused: None };
        Self { tcp, over: false, place, counter, to_stream, received: 0, to_app_done: false, closed_by: None }
    }

    /// Runs until both directions have ended or one has failed. The flag asks to let the application finish sending before
    /// its connection is closed.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(CopyOutcome, bool)> {
        let place = Arc::clone(&self.place);
        let mut state = place.core.lock();
        if state.is_stopping() {
            return Poll::Ready((self.stop(&mut state), false));
        }
        match self.advance(cx, &mut state, place.id) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => {
                let linger = self.to_stream.refused.is_some();
                // NO_ERROR after END_STREAM only says that further data of the application will not be read.
                let refused = self.to_stream.refused.take();
                let error = refused.filter(|error| error.reason() != Some(Reason::NO_ERROR));
                Poll::Ready((self.outcome(&mut state, error.map(CopyError::Stream)), linger))
            }
            Poll::Ready(Err(error)) => {
                match error.side() {
                    Side::Local => state.reset(place.id, Reason::CONNECT_ERROR),
                    Side::Remote => self.reset_tcp(),
                }
                self.closed_by = Some(error.side());
                Poll::Ready((self.outcome(&mut state, Some(error)), false))
            }
        }
    }

    /// The application's connection, to be closed, and the place of its stream.
    pub(super) fn ends(&self) -> (Arc<TcpStream>, Arc<StreamRef>) {
        (Arc::clone(&self.tcp), Arc::clone(&self.place))
    }

    fn advance(
        &mut self,
        cx: &mut Context<'_>,
        state: &mut TunnelState,
        id: StreamId,
    ) -> Poll<Result<(), CopyError>> {
        if self.to_stream.refused.is_none() {
            match self.send(cx, state, id) {
                Poll::Ready(Ok(())) => {
                    self.to_stream.done = true;
                    self.closed_by.get_or_insert(Side::Local);
                }
                Poll::Ready(Err(CopyError::Stream(error))) => self.to_stream.refused = Some(error),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
        }
        if !self.to_app_done
            && let Poll::Ready(side) = self.receive(cx, state, id)?
        {
            self.to_app_done = true;
            self.closed_by.get_or_insert(side);
        }
        let over = self.to_app_done && (self.to_stream.done || self.to_stream.refused.is_some());
        if over { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Application → stream, until its end.
    fn send(
        &mut self,
        cx: &mut Context<'_>,
        state: &mut TunnelState,
        id: StreamId,
    ) -> Poll<Result<(), CopyError>> {
        let Some(stream) = state.stream(id) else { return Poll::Ready(Err(StreamError::Finished.into())) };
        if let Some(lost) = &stream.lost {
            return Poll::Ready(Err(lost.clone().into()));
        }
        if !stream.writer.as_ref().is_some_and(|writer| writer.will_wake(cx.waker())) {
            stream.writer = Some(cx.waker().clone());
        }
        if self.to_stream.done {
            // All data was sent, but a reset must reach an application that does not read.
            return Poll::Pending;
        }
        let mut turn = 0;
        loop {
            let Some(credit) = state.credit(id, cx.waker()) else { return Poll::Pending };
            if turn >= TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(self.tcp.poll_read_ready(cx)).map_err(local)?;
            match self.read(state, id, credit) {
                Ok(0) => match take_reset(state, id) {
                    None => return Poll::Ready(Ok(state.finish(id)?)),
                    Some(error) => return Poll::Ready(Err(local(error))),
                },
                Ok(count) => turn += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(local(error))),
            }
        }
    }

    /// One read of the application into the send buffer.
    fn read(&mut self, state: &mut TunnelState, id: StreamId, credit: usize) -> io::Result<usize> {
        let (tcp, slots) = (&self.tcp, self.to_stream.slots);
        let mut wanted = 0;
        let count = state.send_from(id, (slots, credit), |slices| {
            wanted = slices.iter().map(|slice| slice.len()).sum();
            socket_io::read(tcp, slices)
        })?;
        if count > 0 {
            self.to_stream.bytes += count as u64;
            self.counter.sent(count as u64);
            self.to_stream.slots =
                if count == wanted { (2 * slots).min(MAX_SLOTS) } else { count.div_ceil(SLOT).min(slots) };
        }
        Ok(count)
    }

    /// Stream → application, as far as the owner has not written it. Returns the side that ended this direction: the peer by
    /// END_STREAM, or the application that stopped reading.
    fn receive(
        &mut self,
        cx: &mut Context<'_>,
        state: &mut TunnelState,
        id: StreamId,
    ) -> Poll<Result<Side, CopyError>> {
        loop {
            let Some(stream) = state.stream(id) else { return Poll::Ready(Ok(Side::Remote)) };
            let Some(sink) = &mut stream.sink else { return Poll::Ready(Ok(Side::Remote)) };
            match sink.error.take() {
                // EPIPE: the application had sent its FIN before it closed the socket, so what it sent is complete
                // and it will read no more. (A RST without a FIN before it is ECONNRESET.)
                Some(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    self.received = sink.written;
                    stream.sink = None;
                    stream.discards = true;
                    let unread = stream.queue.clear();
                    state.grant(id, unread);
                    return Poll::Ready(Ok(Side::Local));
                }
                Some(error) => return Poll::Ready(Err(local(error))),
                None => {}
            }
            if stream.queue.is_empty() {
                return match &stream.end {
                    None => {
                        stream.reader = Some(cx.waker().clone());
                        Poll::Pending
                    }
                    Some(Err(error)) => Poll::Ready(Err(error.clone().into())),
                    Some(Ok(())) => {
                        // After the application's own FIN the connection is closed, which sends ours.
                        if !self.to_stream.done {
                            // Fails when the application has closed the connection.
                            let _ = SockRef::from(&*self.tcp).shutdown(Shutdown::Write);
                        }
                        Poll::Ready(Ok(Side::Remote))
                    }
                };
            }
            // A tunnel that was lost, or a reset, is told at once: an application that does not read must not delay it.
            let ended = stream.end.clone();
            if self.tcp.poll_write_ready(cx).is_pending() {
                return match ended {
                    Some(Err(error)) => Poll::Ready(Err(error.into())),
                    _ => {
                        stream.reader = Some(cx.waker().clone());
                        Poll::Pending
                    }
                };
            }
            let written = write_queued(&stream.queue, sink);
            stream.queue.advance(written);
            state.grant(id, written);
        }
    }

    fn reset_tcp(&self) {
        // Fails only when the socket is closed already.
        let _ = self.tcp.set_zero_linger();
    }

    fn outcome(&mut self, state: &mut TunnelState, error: Option<CopyError>) -> CopyOutcome {
        self.over = true;
        let sink = state.stream(self.place.id).and_then(|stream| stream.sink.take());
        CopyOutcome {
            sent: self.to_stream.bytes,
            received: sink.map_or(self.received, |sink| sink.written),
            closed_by: self.closed_by.unwrap_or(Side::Remote),
            error,
        }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if !self.over {
            // Dropped half way: the application must not take this for a proper end. The stream resets itself.
            self.reset_tcp();
        }
    }
}

/// The application's reset, if a write was told of it: the kernel reports it once, and what it has not transmitted then is
/// lost, so that the end that a read finds behind it is none. (EPIPE is no such reset, see [`Copy::receive`].)
fn take_reset(state: &mut TunnelState, id: StreamId) -> Option<io::Error> {
    let error = &mut state.stream(id)?.sink.as_mut()?.error;
    error.take_if(|error| error.kind() != io::ErrorKind::BrokenPipe)
}

fn write_queued(queue: &ReceiveQueue, sink: &mut Sink) -> usize {
    let mut slices = [IoSlice::new(&[]); GATHER];
    let count = queue.slices(&mut slices);
    sink.write(&slices[..count])
}

fn local(error: io::Error) -> CopyError {
    CopyError::Tcp { side: Side::Local, error }
}
