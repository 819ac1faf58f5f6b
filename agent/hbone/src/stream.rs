//! One stream of a tunnel: bytes in with explicit flow-control credit, bytes out with back-pressure, a typed end.
//!
//! Dropping a stream before both sides have ended it resets it with CANCEL: the peer never takes a truncated stream for a
//! complete one.

use std::future::poll_fn;
use std::io::IoSlice;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use isthmus_http2::Code as Reason;

use crate::error::StreamError;
use crate::tunnel::{StreamRef, TunnelId};

/// A bidirectional byte stream.
#[derive(Debug)]
pub struct Stream {
    recv: RecvHalf,
    send: SendHalf,
}

/// The receiving half of a [`Stream`].
#[derive(Debug)]
pub struct RecvHalf {
    stream: Arc<StreamRef>,
    /// Bytes handed out whose credit was not released yet.
    unreleased: usize,
}

/// The sending half of a [`Stream`].
#[derive(Debug)]
pub struct SendHalf {
    stream: Arc<StreamRef>,
    finished: bool,
}

// === impl Stream ===

impl Stream {
    pub(crate) fn new(stream: StreamRef) -> Self {
        let stream = Arc::new(stream);
        let recv = RecvHalf { stream: Arc::clone(&stream), unreleased: 0 };
        Self { recv, send: SendHalf { stream, finished: false } }
    }

    /// Its number in its tunnel (RFC 9113 §5.1.1). It stays the same when the tunnel is handed over.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.send.stream.id
    }

    /// Its tunnel.
    #[must_use]
    pub fn tunnel(&self) -> TunnelId {
        TunnelId::of(&self.send.stream.core)
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
    pub async fn send(&mut self, data: &[u8]) -> Result<(), StreamError> {
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

    /// Where the stream is in its tunnel.
    pub(crate) fn into_place(self) -> Arc<StreamRef> {
        self.send.stream
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
        let mut state = self.stream.core.lock();
        let Some(stream) = state.stream(self.stream.id) else { return Poll::Ready(None) };
        if let Some(data) = stream.queue.pop() {
            self.unreleased += data.len();
            return Poll::Ready(Some(Ok(data.freeze())));
        }
        match &stream.end {
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(error)) => Poll::Ready(Some(Err(error.clone()))),
            None => {
                stream.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Returns the credit of `n` received bytes.
    pub fn release(&mut self, n: usize) {
        let n = n.min(self.unreleased);
        self.unreleased -= n;
        self.stream.core.lock().grant(self.stream.id, n);
    }
}

// === impl SendHalf ===

impl SendHalf {
    /// Sends bytes, waiting for credit and buffer space.
    ///
    /// # Errors
    /// When the stream was reset or its tunnel lost.
    pub async fn send(&mut self, mut data: &[u8]) -> Result<(), StreamError> {
        while !data.is_empty() {
            let sent = poll_fn(|cx| self.poll_send(cx, &[IoSlice::new(data)])).await?;
            data = &data[sent..];
        }
        Ok(())
    }

    /// Queues as many bytes as there is credit and room for; waits for the first.
    pub(crate) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<Result<usize, StreamError>> {
        if self.finished {
            return Poll::Ready(Err(StreamError::Finished));
        }
        let (id, mut state) = (self.stream.id, self.stream.core.lock());
        let Some(stream) = state.stream(id) else { return Poll::Ready(Err(StreamError::Finished)) };
        if let Some(lost) = &stream.lost {
            return Poll::Ready(Err(lost.clone()));
        }
        stream.writer = Some(cx.waker().clone());
        let Some(credit) = state.credit(id, cx.waker()) else { return Poll::Pending };
        let mut left = credit;
        for slice in slices {
            let now = left.min(slice.len());
            state.send(id, &slice[..now]).map_err(|_| StreamError::Finished)?;
            left -= now;
        }
        Poll::Ready(Ok(credit - left))
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
        self.stream.core.lock().finish(self.stream.id)
    }

    /// Resets the stream, both halves.
    pub fn reset(&mut self, reason: Reason) {
        self.finished = true;
        self.stream.core.lock().reset(self.stream.id, reason);
    }

    /// Resolves when the peer resets the stream or the tunnel is lost, also after the receiving half has ended properly.
    pub async fn lost(&mut self) -> StreamError {
        poll_fn(|cx| self.poll_lost(cx)).await
    }

    /// Like [`Self::lost`], for hand-written futures.
    pub fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let mut state = self.stream.core.lock();
        let Some(stream) = state.stream(self.stream.id) else { return Poll::Ready(StreamError::Finished) };
        match &stream.lost {
            Some(lost) => Poll::Ready(lost.clone()),
            None => {
                stream.writer = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
