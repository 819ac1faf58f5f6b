//! The copy between an application's connection and a stream, as one state machine without a task of its own.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use super::chunk::Chunk;
use super::{CopyError, Count, Ended, Side};
use crate::{Reason, RecvHalf, SendHalf, Stream, StreamError};

/// Received frames that are written to the application together, at most.
const GATHER: usize = 32;
/// Bytes of them, at most.
const GATHER_BYTES: usize = 512 * 1024;

/// Application → stream.
#[derive(Debug)]
struct Up {
    chunk: Chunk,
    unsent: Bytes,
    bytes: u64,
    /// The application's FIN was passed on.
    done: bool,
    /// The peer takes no more: reset, or its tunnel lost.
    refused: Option<StreamError>,
}

/// Stream → application.
#[derive(Debug)]
struct Down {
    queue: VecDeque<Bytes>,
    queued: usize,
    bytes: u64,
    /// How the stream ended, behind what is queued.
    end: Option<Result<(), StreamError>>,
    done: bool,
}

/// Both directions.
#[derive(Debug)]
pub(super) struct Copy {
    /// Taken when the copy is over; a copy that is dropped before resets the application.
    tcp: Option<TcpStream>,
    recv: RecvHalf,
    send: SendHalf,
    up: Up,
    down: Down,
    first: Option<Side>,
}

// === impl Copy ===

impl Copy {
    pub(super) fn new(tcp: TcpStream, stream: Stream) -> Self {
        let (recv, send) = stream.split();
        let up = Up { chunk: Chunk::new(), unsent: Bytes::new(), bytes: 0, done: false, refused: None };
        let down = Down { queue: VecDeque::new(), queued: 0, bytes: 0, end: None, done: false };
        Self { tcp: Some(tcp), recv, send, up, down, first: None }
    }

    /// Runs until both directions have ended or one has broken. The flag asks to let the application finish sending
    /// before its connection is closed.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, counts: &impl Count) -> Poll<(Ended, bool)> {
        match self.advance(cx, counts) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => {
                let calm = self.up.refused.is_some();
                // NO_ERROR behind END_STREAM only says that nobody reads what else the application might send.
                let refused = self.up.refused.take();
                let error = refused.filter(|error| error.reason() != Some(Reason::NO_ERROR));
                Poll::Ready((self.ended(error.map(CopyError::Stream)), calm))
            }
            Poll::Ready(Err(error)) => {
                self.break_off(&error);
                self.first = Some(error.side());
                Poll::Ready((self.ended(Some(error)), false))
            }
        }
    }

    /// The application's connection, to be closed.
    pub(super) fn into_tcp(mut self) -> Option<TcpStream> {
        self.tcp.take()
    }

    fn advance(&mut self, cx: &mut Context<'_>, counts: &impl Count) -> Poll<Result<(), CopyError>> {
        let Self { tcp: Some(tcp), recv, send, up, down, first } = self else { return Poll::Ready(Ok(())) };
        if up.refused.is_none() {
            let refused = if up.done {
                // Nothing is left to send, but a reset must reach an application that does not read.
                send.poll_lost(cx).map(Some)
            } else {
                match up.poll(cx, tcp, send, counts) {
                    Poll::Ready(Ok(())) => {
                        up.done = true;
                        first.get_or_insert(Side::Local);
                        Poll::Pending
                    }
                    Poll::Ready(Err(CopyError::Stream(error))) => Poll::Ready(Some(error)),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => Poll::Pending,
                }
            };
            if let Poll::Ready(Some(error)) = refused {
                down.fetch_all(cx, recv);
                up.refused = Some(error);
            }
        }
        if !down.done {
            match down.poll(cx, tcp, recv, counts) {
                Poll::Ready(Ok(side)) => {
                    down.done = true;
                    first.get_or_insert(side);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
        }
        let over = down.done && (up.done || up.refused.is_some());
        if over { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Tells the side that did not break.
    fn break_off(&mut self, error: &CopyError) {
        match error.side() {
            Side::Local => self.send.reset(Reason::CONNECT_ERROR),
            Side::Remote => self.reset_tcp(),
        }
    }

    fn reset_tcp(&self) {
        if let Some(tcp) = &self.tcp {
            // A socket that cannot be told is closed already.
            let _ = tcp.set_zero_linger();
        }
    }

    fn ended(&self, error: Option<CopyError>) -> Ended {
        let closed_by = self.first.unwrap_or(Side::Remote);
        Ended { sent: self.up.bytes, received: self.down.bytes, closed_by, error }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // Dropped half way: the application must not take this for the end. The stream resets itself.
        self.reset_tcp();
    }
}

// === impl Up ===

impl Up {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        tcp: &mut TcpStream,
        send: &mut SendHalf,
        counts: &impl Count,
    ) -> Poll<Result<(), CopyError>> {
        loop {
            while !self.unsent.is_empty() {
                let room = ready!(send.poll_room(cx, self.unsent.len()))?;
                let piece = self.unsent.split_to(room.min(self.unsent.len()));
                let n = piece.len() as u64;
                send.push(piece)?;
                self.bytes += n;
                counts.sent(n);
            }
            match self.chunk.poll_fill(cx, tcp) {
                Poll::Ready(Ok(data)) if data.is_empty() => return Poll::Ready(Ok(send.finish()?)),
                Poll::Ready(Ok(data)) => self.unsent = data,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(local(error))),
                Poll::Pending => {
                    // Asked for only when idle: it costs the tunnel's lock.
                    return send.poll_lost(cx).map(|error| Err(error.into()));
                }
            }
        }
    }
}

// === impl Down ===

impl Down {
    /// Ends with the side that ended it: the peer by END_STREAM, or the application that reads no more.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        tcp: &mut TcpStream,
        recv: &mut RecvHalf,
        counts: &impl Count,
    ) -> Poll<Result<Side, CopyError>> {
        loop {
            self.fetch(cx, recv);
            if self.queue.is_empty() {
                return match &self.end {
                    None => Poll::Pending,
                    Some(Err(error)) => Poll::Ready(Err(error.clone().into())),
                    // A connection that cannot be shut down any more has been closed by the application.
                    Some(Ok(())) => Pin::new(tcp).poll_shutdown(cx).map(|_| Ok(Side::Remote)),
                };
            }
            match self.write(cx, tcp) {
                Poll::Ready(Ok(n)) => {
                    recv.release(n);
                    self.bytes += n as u64;
                    counts.received(n as u64);
                }
                // The application had sent its FIN before it closed for good: what it sent is complete, and it reads
                // no more. (A RST without a FIN before it is "connection reset".)
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                    self.forget();
                    return Poll::Ready(Ok(Side::Local));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(local(error))),
                Poll::Pending => {
                    return match &self.end {
                        Some(Err(error)) => Poll::Ready(Err(error.clone().into())),
                        _ => Poll::Pending,
                    };
                }
            }
        }
    }

    /// Takes what has been received, as much as one write should carry.
    fn fetch(&mut self, cx: &mut Context<'_>, recv: &mut RecvHalf) {
        while self.end.is_none() && self.queue.len() < GATHER && self.queued < GATHER_BYTES {
            if !self.fetch_one(cx, recv) {
                break;
            }
        }
    }

    /// Takes everything up to the stream's end, when it has ended: at most a stream's window.
    fn fetch_all(&mut self, cx: &mut Context<'_>, recv: &mut RecvHalf) {
        while self.end.is_none() && self.fetch_one(cx, recv) {}
    }

    fn fetch_one(&mut self, cx: &mut Context<'_>, recv: &mut RecvHalf) -> bool {
        match recv.poll_recv(cx) {
            Poll::Ready(Some(Ok(data))) => {
                self.queued += data.len();
                self.queue.push_back(data);
            }
            Poll::Ready(Some(Err(error))) => self.end = Some(Err(error)),
            Poll::Ready(None) => self.end = Some(Ok(())),
            Poll::Pending => return false,
        }
        true
    }

    fn write(&mut self, cx: &mut Context<'_>, tcp: &mut TcpStream) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); GATHER];
        let count = self.queue.len().min(GATHER);
        for (slice, data) in slices.iter_mut().zip(&self.queue) {
            *slice = IoSlice::new(data);
        }
        let n = ready!(Pin::new(tcp).poll_write_vectored(cx, &slices[..count]))?;
        let mut left = n;
        while left > 0 {
            let Some(front) = self.queue.front_mut() else { break };
            let part = left.min(front.len());
            front.advance(part);
            if front.is_empty() {
                self.queue.pop_front();
            }
            left -= part;
        }
        self.queued -= n;
        Poll::Ready(Ok(n))
    }

    fn forget(&mut self) {
        self.queue.clear();
        self.queued = 0;
    }
}

fn local(error: io::Error) -> CopyError {
    CopyError::Tcp { side: Side::Local, error }
}
