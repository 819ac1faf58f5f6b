//! The end of a tunnel: its last bytes are written and its transport is closed so that the peer reads them.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::chunk::with_receive_buffer;
use crate::error::TunnelError;

/// How long a GOAWAY or an alert may take to be written to a peer that does not read.
const GOAWAY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a proper end may make no progress: the last bytes of streams that have ended are among what is written.
const STALL_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the peer may take to close after us. A socket that is closed with unread bytes is reset by the kernel, which
/// takes from the peer what it has not read yet.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Nothing more is put into the send buffer: the tunnel ends once that is written, or at a deadline.
#[derive(Debug)]
pub(super) struct Ending {
    error: TunnelError,
    stage: Stage,
    give_up: Pin<Box<Sleep>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Writing,
    Closing,
    AwaitingPeer,
}

impl Ending {
    pub(super) fn new(error: TunnelError) -> Self {
        let limit = if error == TunnelError::Closed { STALL_TIMEOUT } else { GOAWAY_TIMEOUT };
        Self { error, stage: Stage::Writing, give_up: Box::pin(sleep(limit)) }
    }

    /// Something was written.
    pub(super) fn record_progress(&mut self) {
        if self.is_graceful() && self.stage == Stage::Writing {
            self.give_up.as_mut().reset(Instant::now() + STALL_TIMEOUT);
        }
    }

    /// `written` is the outcome of writing what is queued.
    pub(super) fn poll<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut S,
        written: Poll<Result<(), ()>>,
        peer_closed: bool,
    ) -> Poll<TunnelError> {
        if self.stage == Stage::Writing {
            match written {
                Poll::Ready(Ok(())) => self.stage = Stage::Closing,
                Poll::Ready(Err(())) => return Poll::Ready(self.error.clone()),
                Poll::Pending => {}
            }
        }
        if self.stage == Stage::Closing && Pin::new(&mut *io).poll_shutdown(cx).is_ready() {
            if !self.is_graceful() || peer_closed {
                return Poll::Ready(self.error.clone());
            }
            self.stage = Stage::AwaitingPeer;
            self.give_up.as_mut().reset(Instant::now() + CLOSE_TIMEOUT);
        }
        // The transport's own shutdown has a deadline of its own.
        if self.stage == Stage::Closing {
            return Poll::Pending;
        }
        let is_closed = self.stage == Stage::AwaitingPeer && poll_discard(io, cx).is_ready();
        if is_closed || self.give_up.as_mut().poll(cx).is_ready() {
            return Poll::Ready(self.error.clone());
        }
        Poll::Pending
    }

    fn is_graceful(&self) -> bool {
        self.error == TunnelError::Closed
    }
}

/// Reads until the peer's end.
fn poll_discard<S: AsyncRead + Unpin>(io: &mut S, cx: &mut Context<'_>) -> Poll<()> {
    with_receive_buffer(|buffer| {
        loop {
            let mut into = ReadBuf::new(buffer);
            match Pin::new(&mut *io).poll_read(cx, &mut into) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !into.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
    })
}
