//! The copy between two TCP connections, as one state machine without a task of its own.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use super::chunk::Chunk;
use super::{CopyError, Count, Ended, Side};

/// One direction.
#[derive(Debug)]
struct Pipe {
    chunk: Chunk,
    unwritten: Bytes,
    bytes: u64,
    eof: bool,
    done: bool,
    /// The receiver closed for good after its FIN; nobody reads this direction.
    refused: bool,
}

/// Why a direction broke, and on which of its ends.
enum Broken {
    Reading(io::Error),
    Writing(io::Error),
}

/// Both directions.
#[derive(Debug)]
pub(super) struct Copy {
    local: Option<TcpStream>,
    remote: Option<TcpStream>,
    up: Pipe,
    down: Pipe,
    first: Option<Side>,
}

// === impl Copy ===

impl Copy {
    pub(super) fn new(local: TcpStream, remote: TcpStream) -> Self {
        Self { local: Some(local), remote: Some(remote), up: Pipe::new(), down: Pipe::new(), first: None }
    }

    /// Runs until both directions have ended or one has broken; names the side that should be let finish sending.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, counts: &impl Count) -> Poll<(Ended, Option<Side>)> {
        let error = match ready!(self.advance(cx, counts)) {
            Ok(()) => {
                let calm = match (self.up.refused, self.down.refused) {
                    (true, _) => Some(Side::Local),
                    (_, true) => Some(Side::Remote),
                    _ => None,
                };
                return Poll::Ready((self.ended(None), calm));
            }
            Err(error) => error,
        };
        self.first = Some(error.side());
        self.reset_both();
        Poll::Ready((self.ended(Some(error)), None))
    }

    /// Both connections, to be closed.
    pub(super) fn into_both(mut self) -> impl Iterator<Item = (TcpStream, Side)> {
        let local = self.local.take().map(|tcp| (tcp, Side::Local));
        let remote = self.remote.take().map(|tcp| (tcp, Side::Remote));
        local.into_iter().chain(remote)
    }

    fn advance(&mut self, cx: &mut Context<'_>, counts: &impl Count) -> Poll<Result<(), CopyError>> {
        let Self { local: Some(local), remote: Some(remote), up, down, first } = self else {
            return Poll::Ready(Ok(()));
        };
        let broken = |sides: (Side, Side)| {
            move |broken| match broken {
                Broken::Reading(error) => CopyError::Tcp { side: sides.0, error },
                Broken::Writing(error) => CopyError::Tcp { side: sides.1, error },
            }
        };
        if !up.done {
            let polled = up.poll(cx, local, remote, |n| counts.sent(n));
            if polled.map_err(broken((Side::Local, Side::Remote)))?.is_ready() {
                first.get_or_insert(if up.refused { Side::Remote } else { Side::Local });
            }
        }
        if !down.done {
            let polled = down.poll(cx, remote, local, |n| counts.received(n));
            if polled.map_err(broken((Side::Remote, Side::Local)))?.is_ready() {
                first.get_or_insert(if down.refused { Side::Local } else { Side::Remote });
            }
        }
        if up.done && down.done { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn reset_both(&self) {
        for tcp in [&self.local, &self.remote].into_iter().flatten() {
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
        // Dropped half way: neither side may take this for the end.
        self.reset_both();
    }
}

// === impl Pipe ===

impl Pipe {
    fn new() -> Self {
        let chunk = Chunk::new();
        Self { chunk, unwritten: Bytes::new(), bytes: 0, eof: false, done: false, refused: false }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        count: impl Fn(u64),
    ) -> Poll<Result<(), Broken>> {
        loop {
            while !self.unwritten.is_empty() {
                match ready!(Pin::new(&mut *to).poll_write(cx, &self.unwritten)) {
                    Ok(n) => {
                        self.unwritten.advance(n);
                        self.bytes += n as u64;
                        count(n as u64);
                    }
                    // Closed for good after its FIN: what it sent is complete, and it reads no more.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                        (self.done, self.refused) = (true, true);
                        self.unwritten.clear();
                        return Poll::Ready(Ok(()));
                    }
                    Err(error) => return Poll::Ready(Err(Broken::Writing(error))),
                }
            }
            if self.eof {
                // A connection that cannot be shut down any more has been closed by its owner.
                let _ = ready!(Pin::new(to).poll_shutdown(cx));
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            self.unwritten = ready!(self.chunk.poll_fill(cx, from)).map_err(Broken::Reading)?;
            self.eof = self.unwritten.is_empty();
        }
    }
}
