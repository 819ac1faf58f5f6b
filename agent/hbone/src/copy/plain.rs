//! The copy between two TCP connections: one state machine, polled by its owner's task.

mod stop;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

pub(crate) use self::stop::DirectionParts;
pub use self::stop::{PlainControl, PlainParts};
use super::outcome::{CopyError, CopyOutcome, Side};
use super::read_buffer::ReadBuffer;
use crate::byte_counter::ByteCounter;

/// One direction.
#[derive(Debug)]
struct Direction {
    buffer: ReadBuffer,
    unwritten: Bytes,
    bytes: u64,
    eof: bool,
    done: bool,
    /// The receiver closed its socket after its FIN: this direction has no reader any more.
    refused: bool,
}

/// Why a direction failed, and at which of its ends.
enum DirectionError {
    Reading(io::Error),
    Writing(io::Error),
}

/// The copy: both directions and their connections.
#[derive(Debug)]
pub(super) struct Copy {
    local: Option<TcpStream>,
    remote: Option<TcpStream>,
    to_remote: Direction,
    to_local: Direction,
    /// The side that closed first.
    closed_by: Option<Side>,
}

// === impl Copy ===

impl Copy {
    pub(super) fn new(local: TcpStream, remote: TcpStream) -> Self {
        Self {
            local: Some(local),
            remote: Some(remote),
            to_remote: Direction::new(),
            to_local: Direction::new(),
            closed_by: None,
        }
    }

    /// Runs until both directions have ended, one has failed, or the copy is taken apart. The side in the result, if any,
    /// should be allowed to finish sending before its connection is closed.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        counter: &impl ByteCounter,
        control: &PlainControl,
    ) -> Poll<(CopyOutcome, Option<Side>)> {
        if control.is_wanted(cx) {
            return Poll::Ready((self.stop(control), None));
        }
        let error = match ready!(self.advance(cx, counter)) {
            Ok(()) => {
                let linger = match (self.to_remote.refused, self.to_local.refused) {
                    (true, _) => Some(Side::Local),
                    (_, true) => Some(Side::Remote),
                    _ => None,
                };
                return Poll::Ready((self.outcome(None), linger));
            }
            Err(error) => error,
        };
        self.closed_by = Some(error.side());
        self.reset_both();
        Poll::Ready((self.outcome(Some(error)), None))
    }

    /// Both connections, to be closed.
    pub(super) fn into_both(mut self) -> impl Iterator<Item = (TcpStream, Side)> {
        let local = self.local.take().map(|tcp| (tcp, Side::Local));
        let remote = self.remote.take().map(|tcp| (tcp, Side::Remote));
        local.into_iter().chain(remote)
    }

    fn advance(&mut self, cx: &mut Context<'_>, counter: &impl ByteCounter) -> Poll<Result<(), CopyError>> {
        let Self { local: Some(local), remote: Some(remote), to_remote, to_local, closed_by } = self else {
            return Poll::Ready(Ok(()));
        };
        let failed = |(from, to): (Side, Side)| {
            move |failed| match failed {
                DirectionError::Reading(error) => CopyError::Tcp { side: from, error },
                DirectionError::Writing(error) => CopyError::Tcp { side: to, error },
            }
        };
        if !to_remote.done {
            let polled = to_remote.poll(cx, local, remote, |n| counter.sent(n));
            if polled.map_err(failed((Side::Local, Side::Remote)))?.is_ready() {
                closed_by.get_or_insert(if to_remote.refused { Side::Remote } else { Side::Local });
            }
        }
        if !to_local.done {
            let polled = to_local.poll(cx, remote, local, |n| counter.received(n));
            if polled.map_err(failed((Side::Remote, Side::Local)))?.is_ready() {
                closed_by.get_or_insert(if to_local.refused { Side::Local } else { Side::Remote });
            }
        }
        if to_remote.done && to_local.done { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn reset_both(&self) {
        for tcp in [&self.local, &self.remote].into_iter().flatten() {
            // Fails only when the socket is closed already.
            let _ = tcp.set_zero_linger();
        }
    }

    fn outcome(&self, error: Option<CopyError>) -> CopyOutcome {
        let closed_by = self.closed_by.unwrap_or(Side::Remote);
        CopyOutcome { sent: self.to_remote.bytes, received: self.to_local.bytes, closed_by, error }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // Dropped half way: neither side may take this for a proper end.
        self.reset_both();
    }
}

// === impl Direction ===

impl Direction {
    fn new() -> Self {
        let buffer = ReadBuffer::new();
        Self { buffer, unwritten: Bytes::new(), bytes: 0, eof: false, done: false, refused: false }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        count: impl Fn(u64),
    ) -> Poll<Result<(), DirectionError>> {
        loop {
            while !self.unwritten.is_empty() {
                match ready!(Pin::new(&mut *to).poll_write(cx, &self.unwritten)) {
                    Ok(n) => {
                        self.unwritten.advance(n);
                        self.bytes += n as u64;
                        count(n as u64);
                    }
                    // EPIPE: the receiver had sent its FIN before it closed, so what it sent is complete.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                        (self.done, self.refused) = (true, true);
                        self.unwritten.clear();
                        return Poll::Ready(Ok(()));
                    }
                    Err(error) => return Poll::Ready(Err(DirectionError::Writing(error))),
                }
            }
            if self.eof {
                // Shutdown fails when the receiver has closed the connection.
                let _ = ready!(Pin::new(to).poll_shutdown(cx));
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            self.unwritten = ready!(self.buffer.poll_fill(cx, from)).map_err(DirectionError::Reading)?;
            self.eof = self.unwritten.is_empty();
        }
    }
}
