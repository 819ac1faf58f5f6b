//! A stream as `AsyncRead` and `AsyncWrite`: what the inner TLS session of double HBONE runs over.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use isthmus_http2::Code as Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::error::{StreamError, TunnelError};
use crate::stream::Stream;
use crate::tunnel::{Link, Transport};

/// [`Stream`] as [`AsyncRead`] and [`AsyncWrite`]. END_STREAM is end of file; a reset is an error.
#[derive(Debug)]
pub struct StreamIo {
    stream: Stream,
    unread: Bytes,
}

impl StreamIo {
    /// Wraps a stream.
    #[must_use]
    pub fn new(stream: Stream) -> Self {
        Self { stream, unread: Bytes::new() }
    }

    /// The stream, and bytes that were received but not read.
    #[must_use]
    pub fn into_inner(self) -> (Stream, Bytes) {
        (self.stream, self.unread)
    }
}

impl From<Stream> for StreamIo {
    fn from(stream: Stream) -> Self {
        Self::new(stream)
    }
}

impl Transport for StreamIo {
    type Io = Self;

    fn into_link(self) -> Result<Link<Self>, TunnelError> {
        Ok(Link::plain(self))
    }
}

impl AsyncRead for StreamIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let (recv, _) = this.stream.halves();
        if this.unread.is_empty() {
            match ready!(recv.poll_recv(cx)) {
                Some(Ok(data)) => this.unread = data,
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = buf.remaining().min(this.unread.len());
        buf.put_slice(&this.unread[..n]);
        this.unread.advance(n);
        recv.release(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if bufs.iter().all(|buf| buf.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        let (_, send) = self.stream.halves();
        Poll::Ready(Ok(ready!(send.poll_send(cx, bufs))?))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing to do: the tunnel's owner task writes and flushes queued frames.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (_, send) = self.stream.halves();
        match send.finish() {
            // The peer has read all it wanted.
            Ok(()) | Err(StreamError::Reset(Reason::NO_ERROR)) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}
