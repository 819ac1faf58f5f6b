//! One stream of a tunnel: bytes in with explicit flow-control credit, bytes out with back-pressure, a typed end.
//!
//! Dropping a stream before both sides have ended it resets it with CANCEL: the peer never takes a truncated stream for a
//! complete one.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;

use crate::close_reason::CloseReason;
use crate::error::StreamError;
use crate::reason::Reason;
use crate::usage::StreamPermit;

/// A bidirectional byte stream.
#[derive(Debug)]
pub struct Stream {
    recv: RecvHalf,
    send: SendHalf,
}

/// The receiving half of a [`Stream`].
#[derive(Debug)]
pub struct RecvHalf {
    inner: h2::RecvStream,
    /// Bytes handed out whose credit was not released yet.
    unreleased: usize,
    close_reason: Arc<CloseReason>,
    _permit: Option<Arc<StreamPermit>>,
}

/// The sending half of a [`Stream`].
#[derive(Debug)]
pub struct SendHalf {
    inner: h2::SendStream<Bytes>,
    finished: bool,
    close_reason: Arc<CloseReason>,
    _permit: Option<Arc<StreamPermit>>,
}

// === impl Stream ===

impl Stream {
    pub(crate) fn new(
        recv: h2::RecvStream,
        send: h2::SendStream<Bytes>,
        close_reason: Arc<CloseReason>,
        permit: Option<StreamPermit>,
    ) -> Self {
        let permit = permit.map(Arc::new);
        Self {
            recv: RecvHalf {
                inner: recv,
                unreleased: 0,
                close_reason: Arc::clone(&close_reason),
                _permit: permit.clone(),
            },
            send: SendHalf { inner: send, finished: false, close_reason, _permit: permit },
        }
    }

    /// The next bytes; `None` after END_STREAM. Their flow-control credit is returned with [`Self::release`].
    pub async fn recv(&mut self) -> Option<Result<Bytes, StreamError>> {
        self.recv.recv().await
    }

    /// Returns the credit of `n` received bytes, so that the peer may send as many more.
    pub fn release(&mut self, n: usize) {
        self.recv.release(n);
    }

    /// Sends bytes, waiting for the peer's credit and for room in our send buffer.
    ///
    /// # Errors
    /// When the stream was reset or its tunnel lost.
    pub async fn send(&mut self, data: Bytes) -> Result<(), StreamError> {
        self.send.send(data).await
    }

    /// Ends the sending half with END_STREAM; the receiving half stays open.
    ///
    /// # Errors
    /// When the stream was reset or its tunnel lost.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        self.send.finish()
    }

    /// Resets both halves.
    pub fn reset(&mut self, reason: Reason) {
        self.send.reset(reason);
    }

    /// Splits it into its halves, for use by different owners.
    #[must_use]
    pub fn split(self) -> (RecvHalf, SendHalf) {
        (self.recv, self.send)
    }

    /// Joins two halves, which may be of different streams.
    #[must_use]
    pub fn join(recv: RecvHalf, send: SendHalf) -> Self {
        Self { recv, send }
    }

    pub(crate) fn halves(&mut self) -> (&mut RecvHalf, &mut SendHalf) {
        (&mut self.recv, &mut self.send)
    }
}

// === impl RecvHalf ===

impl RecvHalf {
    /// The next bytes; `None` after END_STREAM.
    pub async fn recv(&mut self) -> Option<Result<Bytes, StreamError>> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Like [`Self::recv`], for hand-written futures.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>> {
        loop {
            return Poll::Ready(match ready!(self.inner.poll_data(cx)) {
                // An empty frame only carries END_STREAM.
                Some(Ok(data)) if data.is_empty() => continue,
                Some(Ok(data)) => {
                    self.unreleased += data.len();
                    Some(Ok(data))
                }
                Some(Err(error)) => Some(Err(self.close_reason.stream_error(error))),
                None => None,
            });
        }
    }

    /// Returns the credit of `n` received bytes.
    pub fn release(&mut self, n: usize) {
        let n = n.min(self.unreleased);
        self.unreleased -= n;
        if n > 0 {
            // Fails only for more than was handed out.
            let _ = self.inner.flow_control().release_capacity(n);
        }
    }
}

// === impl SendHalf ===

impl SendHalf {
    /// Sends bytes, waiting for credit and buffer space.
    ///
    /// # Errors
    /// When the stream was reset or its tunnel lost.
    pub async fn send(&mut self, mut data: Bytes) -> Result<(), StreamError> {
        while !data.is_empty() {
            let room = poll_fn(|cx| self.poll_capacity(cx, data.len())).await?;
            self.push(data.split_to(room.min(data.len())))?;
        }
        Ok(())
    }

    /// Waits for capacity to send at least one byte; reserves at most `want`.
    pub(crate) fn poll_capacity(
        &mut self,
        cx: &mut Context<'_>,
        want: usize,
    ) -> Poll<Result<usize, StreamError>> {
        if self.finished {
            return Poll::Ready(Err(StreamError::Finished));
        }
        self.inner.reserve_capacity(want);
        loop {
            let room = self.inner.capacity();
            if room > 0 {
                return Poll::Ready(Ok(room));
            }
            match ready!(self.inner.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(self.close_reason.stream_error(error))),
                None => return Poll::Ready(Err(self.end_reason(cx))),
            }
        }
    }

    /// Queues bytes in the tunnel's send buffer; there must be capacity for them.
    pub(crate) fn push(&mut self, data: Bytes) -> Result<(), StreamError> {
        self.inner.send_data(data, false).map_err(|error| self.close_reason.stream_error(error))
    }

    /// Ends this half with END_STREAM. Calling it again does nothing.
    ///
    /// # Errors
    /// When the stream was reset or its tunnel lost.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        if self.finished {
            return Ok(());
        }
        self.finished = true;
        let done = self.inner.send_data(Bytes::new(), true);
        done.map_err(|error| {
            let mut cx = Context::from_waker(Waker::noop());
            if error.is_reset() || error.is_io() {
                self.close_reason.stream_error(error)
            } else {
                self.end_reason(&mut cx)
            }
        })
    }

    /// Resets the stream, both halves.
    pub fn reset(&mut self, reason: Reason) {
        self.finished = true;
        self.inner.send_reset(reason.to_h2());
    }

    /// Resolves when the peer resets the stream or the tunnel is lost, also after the receiving half has ended properly.
    pub async fn lost(&mut self) -> StreamError {
        poll_fn(|cx| self.poll_lost(cx)).await
    }

    /// Like [`Self::lost`], for hand-written futures.
    pub fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        match ready!(self.inner.poll_reset(cx)) {
            Ok(reason) => Poll::Ready(self.reset_or_lost(reason)),
            Err(error) => Poll::Ready(self.close_reason.stream_error(error)),
        }
    }

    /// Why nothing can be sent any more.
    fn end_reason(&mut self, cx: &mut Context<'_>) -> StreamError {
        match self.poll_lost(cx) {
            Poll::Ready(error) => error,
            Poll::Pending => StreamError::Finished,
        }
    }

    /// The engine reports a stream that a GOAWAY closed like one that was reset.
    fn reset_or_lost(&self, reason: h2::Reason) -> StreamError {
        match self.close_reason.get() {
            Some(known) => StreamError::Lost(known.clone()),
            None => StreamError::Reset(reason.into()),
        }
    }
}
