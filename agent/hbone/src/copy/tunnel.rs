//! The copy between an application's connection and a stream: one state machine, polled by its owner's task.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use super::outcome::{ByteCounter, CopyError, CopyOutcome, Side};
use super::read_buffer::ReadBuffer;
use crate::error::StreamError;
use crate::reason::Reason;
use crate::stream::{RecvHalf, SendHalf, Stream};

/// Maximum number of received frames per write to the application.
const GATHER: usize = 32;
/// Maximum number of their bytes.
const GATHER_BYTES: usize = 512 * 1024;

/// Application → stream.
#[derive(Debug)]
struct ToStream {
    buffer: ReadBuffer,
    unsent: Bytes,
    bytes: u64,
    /// The application's FIN was passed on as END_STREAM.
    done: bool,
    /// The peer accepts no more data: it reset the stream, or the tunnel was lost.
    refused: Option<StreamError>,
}

/// Stream → application.
#[derive(Debug)]
struct ToApp {
    queue: VecDeque<Bytes>,
    queued: usize,
    bytes: u64,
    /// How the stream ended, after the queued data.
    end: Option<Result<(), StreamError>>,
    done: bool,
}

/// The copy: both directions and the connections they share.
#[derive(Debug)]
pub(super) struct Copy {
    /// Taken when the copy is over; dropping the copy before that resets the application.
    tcp: Option<TcpStream>,
    recv: RecvHalf,
    send: SendHalf,
    to_stream: ToStream,
    to_app: ToApp,
    /// The side that closed first.
    closed_by: Option<Side>,
}

// === impl Copy ===

impl Copy {
    pub(super) fn new(tcp: TcpStream, stream: Stream) -> Self {
        let (recv, send) = stream.split();
        let to_stream = ToStream {
            buffer: ReadBuffer::new(),
            unsent: Bytes::new(),
            bytes: 0,
            done: false,
            refused: None,
        };
        let to_app = ToApp { queue: VecDeque::new(), queued: 0, bytes: 0, end: None, done: false };
        Self { tcp: Some(tcp), recv, send, to_stream, to_app, closed_by: None }
    }

    /// Runs until both directions have ended or one has failed. The flag asks to let the application finish sending before
    /// its connection is closed.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        counter: &impl ByteCounter,
    ) -> Poll<(CopyOutcome, bool)> {
        match self.advance(cx, counter) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => {
                let linger = self.to_stream.refused.is_some();
                // NO_ERROR after END_STREAM only says that further data of the application will not be read.
                let refused = self.to_stream.refused.take();
                let error = refused.filter(|error| error.reason() != Some(Reason::NO_ERROR));
                Poll::Ready((self.outcome(error.map(CopyError::Stream)), linger))
            }
            Poll::Ready(Err(error)) => {
                self.notify_other_side(&error);
                self.closed_by = Some(error.side());
                Poll::Ready((self.outcome(Some(error)), false))
            }
        }
    }

    /// The application's connection, to be closed.
    pub(super) fn into_tcp(mut self) -> Option<TcpStream> {
        self.tcp.take()
    }

    fn advance(&mut self, cx: &mut Context<'_>, counter: &impl ByteCounter) -> Poll<Result<(), CopyError>> {
        let Self { tcp: Some(tcp), recv, send, to_stream, to_app, closed_by } = self else {
            return Poll::Ready(Ok(()));
        };
        if to_stream.refused.is_none() {
            let refused = if to_stream.done {
                // All data was sent, but a reset must reach an application that does not read.
                send.poll_lost(cx).map(Some)
            } else {
                match to_stream.poll(cx, tcp, send, counter) {
                    Poll::Ready(Ok(())) => {
                        to_stream.done = true;
                        closed_by.get_or_insert(Side::Local);
                        Poll::Pending
                    }
                    Poll::Ready(Err(CopyError::Stream(error))) => Poll::Ready(Some(error)),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => Poll::Pending,
                }
            };
            if let Poll::Ready(Some(error)) = refused {
                to_app.fetch_all(cx, recv);
                to_stream.refused = Some(error);
            }
        }
        if !to_app.done {
            match to_app.poll(cx, tcp, recv, counter) {
                Poll::Ready(Ok(side)) => {
                    to_app.done = true;
                    closed_by.get_or_insert(side);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
        }
        let over = to_app.done && (to_stream.done || to_stream.refused.is_some());
        if over { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Resets the side that did not fail.
    fn notify_other_side(&mut self, error: &CopyError) {
        match error.side() {
            Side::Local => self.send.reset(Reason::CONNECT_ERROR),
            Side::Remote => self.reset_tcp(),
        }
    }

    fn reset_tcp(&self) {
        if let Some(tcp) = &self.tcp {
            // Fails only when the socket is closed already.
            let _ = tcp.set_zero_linger();
        }
    }

    fn outcome(&self, error: Option<CopyError>) -> CopyOutcome {
        let closed_by = self.closed_by.unwrap_or(Side::Remote);
        CopyOutcome { sent: self.to_stream.bytes, received: self.to_app.bytes, closed_by, error }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // Dropped half way: the application must not take this for a proper end. The stream resets itself.
        self.reset_tcp();
    }
}

// === impl ToStream ===

impl ToStream {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        tcp: &mut TcpStream,
        send: &mut SendHalf,
        counter: &impl ByteCounter,
    ) -> Poll<Result<(), CopyError>> {
        loop {
            while !self.unsent.is_empty() {
                let room = ready!(send.poll_capacity(cx, self.unsent.len()))?;
                let piece = self.unsent.split_to(room.min(self.unsent.len()));
                let n = piece.len() as u64;
                send.push(piece)?;
                self.bytes += n;
                counter.sent(n);
            }
            match self.buffer.poll_fill(cx, tcp) {
                Poll::Ready(Ok(data)) if data.is_empty() => return Poll::Ready(Ok(send.finish()?)),
                Poll::Ready(Ok(data)) => self.unsent = data,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(local(error))),
                Poll::Pending => {
                    // Polled only when idle: it takes the tunnel's lock.
                    return send.poll_lost(cx).map(|error| Err(error.into()));
                }
            }
        }
    }
}

// === impl ToApp ===

impl ToApp {
    /// Returns the side that ended this direction: the peer by END_STREAM, or the application that stopped reading.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        tcp: &mut TcpStream,
        recv: &mut RecvHalf,
        counter: &impl ByteCounter,
    ) -> Poll<Result<Side, CopyError>> {
        loop {
            self.fetch(cx, recv);
            if self.queue.is_empty() {
                return match &self.end {
                    None => Poll::Pending,
                    Some(Err(error)) => Poll::Ready(Err(error.clone().into())),
                    // Shutdown fails when the application has closed the connection.
                    Some(Ok(())) => Pin::new(tcp).poll_shutdown(cx).map(|_| Ok(Side::Remote)),
                };
            }
            match self.write(cx, tcp) {
                Poll::Ready(Ok(n)) => {
                    recv.release(n);
                    self.bytes += n as u64;
                    counter.received(n as u64);
                }
                // EPIPE: the application had sent its FIN before it closed the socket, so what it sent is complete
                // and it will read no more. (A RST without a FIN before it is ECONNRESET.)
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                    self.clear();
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

    /// Queues what has been received, up to what one write should carry.
    fn fetch(&mut self, cx: &mut Context<'_>, recv: &mut RecvHalf) {
        while self.end.is_none() && self.queue.len() < GATHER && self.queued < GATHER_BYTES {
            if !self.fetch_one(cx, recv) {
                break;
            }
        }
    }

    /// Queues everything up to the end of a stream that has ended: at most one stream window.
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

    fn clear(&mut self) {
        self.queue.clear();
        self.queued = 0;
    }
}

fn local(error: io::Error) -> CopyError {
    CopyError::Tcp { side: Side::Local, error }
}
