//! One stream of a tunnel: owned bytes in with explicit credit, owned bytes out with back-pressure, a typed end.
//!
//! Dropping a stream that neither side has ended resets it with CANCEL: the other end never takes a truncated stream
//! for a complete one.

use std::future::poll_fn;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use crate::client::Permit;
use crate::{Reason, StreamError, TunnelError};

/// What a tunnel's streams know of it: why it ended, once it has.
#[derive(Debug, Default)]
pub(crate) struct Fate(OnceLock<TunnelError>);

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
    /// Bytes handed out whose credit was not given back yet.
    held: usize,
    fate: Arc<Fate>,
    _permit: Option<Arc<Permit>>,
}

/// The sending half of a [`Stream`].
#[derive(Debug)]
pub struct SendHalf {
    inner: h2::SendStream<Bytes>,
    finished: bool,
    fate: Arc<Fate>,
    _permit: Option<Arc<Permit>>,
}

// === impl Fate ===

impl Fate {
    /// Notes why the tunnel ended; the first reason stays.
    pub(crate) fn seal(&self, error: TunnelError) {
        let _ = self.0.set(error);
    }

    pub(crate) fn get(&self) -> Option<&TunnelError> {
        self.0.get()
    }

    /// Turns the engine's error of one stream into ours.
    pub(crate) fn explain(&self, error: h2::Error) -> StreamError {
        if error.is_reset() {
            return StreamError::Reset(error.reason().map_or(Reason::INTERNAL_ERROR, Reason::from));
        }
        StreamError::Lost(self.why(error))
    }

    /// The engine tells streams of a vanished tunnel no more than "broken pipe"; the tunnel's owner knows better.
    pub(crate) fn why(&self, error: h2::Error) -> TunnelError {
        if let Some(known) = self.get() {
            return known.clone();
        }
        let vague = error.get_io().is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe);
        if vague { TunnelError::Closed } else { TunnelError::from_h2(error) }
    }
}

// === impl Stream ===

impl Stream {
    pub(crate) fn new(
        recv: h2::RecvStream,
        send: h2::SendStream<Bytes>,
        fate: Arc<Fate>,
        permit: Option<Permit>,
    ) -> Self {
        let permit = permit.map(Arc::new);
        Self {
            recv: RecvHalf { inner: recv, held: 0, fate: Arc::clone(&fate), _permit: permit.clone() },
            send: SendHalf { inner: send, finished: false, fate, _permit: permit },
        }
    }

    /// The next bytes; `None` after END_STREAM. Their credit is given back with [`Self::release`].
    pub async fn recv(&mut self) -> Option<Result<Bytes, StreamError>> {
        self.recv.recv().await
    }

    /// Gives back the credit of `n` received bytes, so that the peer may send as many more.
    pub fn release(&mut self, n: usize) {
        self.recv.release(n);
    }

    /// Sends bytes, waiting until the peer's credit and our send buffer have room for all of them.
    ///
    /// # Errors
    /// When the stream was reset or its tunnel lost.
    pub async fn send(&mut self, data: Bytes) -> Result<(), StreamError> {
        self.send.send(data).await
    }

    /// Ends the sending half with END_STREAM; the other half goes on.
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

    /// Both halves, to be used from different places.
    #[must_use]
    pub fn split(self) -> (RecvHalf, SendHalf) {
        (self.recv, self.send)
    }

    /// A stream of two halves, which need not belong together.
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

    /// As [`Self::recv`], for hand-written futures.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>> {
        loop {
            return Poll::Ready(match ready!(self.inner.poll_data(cx)) {
                // An empty frame carries END_STREAM and nothing else.
                Some(Ok(data)) if data.is_empty() => continue,
                Some(Ok(data)) => {
                    self.held += data.len();
                    Some(Ok(data))
                }
                Some(Err(error)) => Some(Err(self.fate.explain(error))),
                None => None,
            });
        }
    }

    /// Gives back the credit of `n` received bytes.
    pub fn release(&mut self, n: usize) {
        let n = n.min(self.held);
        self.held -= n;
        if n > 0 {
            // It can only fail for more than was handed out.
            let _ = self.inner.flow_control().release_capacity(n);
        }
    }
}

// === impl SendHalf ===

impl SendHalf {
    /// Sends bytes, waiting until there is room for all of them.
    ///
    /// # Errors
    /// When the stream was reset or its tunnel lost.
    pub async fn send(&mut self, mut data: Bytes) -> Result<(), StreamError> {
        while !data.is_empty() {
            let room = poll_fn(|cx| self.poll_room(cx, data.len())).await?;
            self.push(data.split_to(room.min(data.len())))?;
        }
        Ok(())
    }

    /// Waits until at least one byte may be sent; at most `want` are reserved.
    pub(crate) fn poll_room(
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
                Some(Err(error)) => return Poll::Ready(Err(self.fate.explain(error))),
                None => return Poll::Ready(Err(self.ended(cx))),
            }
        }
    }

    /// Hands bytes to the tunnel; there must be room for them.
    pub(crate) fn push(&mut self, data: Bytes) -> Result<(), StreamError> {
        self.inner.send_data(data, false).map_err(|error| self.fate.explain(error))
    }

    /// Ends this half with END_STREAM. Doing it twice is no error.
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
            let mut cx = Context::from_waker(std::task::Waker::noop());
            if error.is_reset() || error.is_io() { self.fate.explain(error) } else { self.ended(&mut cx) }
        })
    }

    /// Resets the stream, both halves of it.
    pub fn reset(&mut self, reason: Reason) {
        self.finished = true;
        self.inner.send_reset(reason.to_h2());
    }

    /// Resolves when the peer resets the stream or the tunnel is lost; the receiving half may have ended well before.
    pub async fn lost(&mut self) -> StreamError {
        poll_fn(|cx| self.poll_lost(cx)).await
    }

    /// As [`Self::lost`], for hand-written futures.
    pub fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        match ready!(self.inner.poll_reset(cx)) {
            Ok(reason) => Poll::Ready(self.reset_or_lost(reason)),
            Err(error) => Poll::Ready(self.fate.explain(error)),
        }
    }

    /// Why nothing can be sent any more.
    fn ended(&mut self, cx: &mut Context<'_>) -> StreamError {
        match self.poll_lost(cx) {
            Poll::Ready(error) => error,
            Poll::Pending => StreamError::Finished,
        }
    }

    /// The engine reports a stream that a GOAWAY killed like one that was reset.
    fn reset_or_lost(&self, reason: h2::Reason) -> StreamError {
        match self.fate.get() {
            Some(known) => StreamError::Lost(known.clone()),
            None => StreamError::Reset(reason.into()),
        }
    }
}
