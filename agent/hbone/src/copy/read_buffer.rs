//! Reading an application's bytes: everything the socket has, into a buffer that grows with the traffic and is freed while
//! there is none.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The smallest read.
const MIN: usize = 16 * 1024;
/// The largest read; larger DATA frames gain little throughput and cost latency.
const MAX: usize = 256 * 1024;
/// Reads up to this size are copied out, so that a few bytes do not pin a whole buffer.
const SMALL: usize = 4 * 1024;

/// The read buffer of one connection.
#[derive(Debug)]
pub(super) struct ReadBuffer {
    buf: BytesMut,
    size: usize,
    /// An error after bytes that were returned first. It must be kept: a socket reports an error once and then EOF.
    deferred_error: Option<io::Error>,
}

impl ReadBuffer {
    pub(super) fn new() -> Self {
        Self { buf: BytesMut::new(), size: MIN, deferred_error: None }
    }

    /// With an error that was met behind what was read before.
    pub(super) fn with_error(deferred_error: Option<io::Error>) -> Self {
        Self { deferred_error, ..Self::new() }
    }

    /// The error behind what was read. Between two reads it is all there is.
    pub(super) fn into_error(self) -> Option<io::Error> {
        self.deferred_error
    }

    /// Reads everything that is available, up to the buffer's size. Empty bytes are EOF. Holds no memory while there is
    /// nothing to read.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
    ) -> Poll<io::Result<Bytes>> {
        if let Some(error) = self.deferred_error.take() {
            return Poll::Ready(Err(error));
        }
        if self.buf.capacity() < self.size {
            self.buf.reserve(self.size);
        }
        while self.buf.len() < self.size {
            // The allocation may be larger than requested.
            let left = self.size - self.buf.len();
            let mut room = (&mut self.buf).limit(left);
            match pin!(from.read_buf(&mut room)).poll(cx) {
                Poll::Ready(Ok(0)) | Poll::Pending if !self.buf.is_empty() => break,
                Poll::Ready(Err(error)) if !self.buf.is_empty() => {
                    self.deferred_error = Some(error);
                    break;
                }
                Poll::Pending => {
                    self.buf = BytesMut::new();
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(Bytes::new())),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(self.split_read()))
    }

    /// The bytes that were read; adapts the size of the next read.
    fn split_read(&mut self) -> Bytes {
        let n = self.buf.len();
        if n >= self.size {
            self.size = (self.size * 2).min(MAX);
        } else if n < self.size / 4 {
            self.size = (self.size / 2).max(MIN);
        }
        if n > SMALL {
            return self.buf.split().freeze();
        }
        let small = Bytes::copy_from_slice(&self.buf);
        self.buf.clear();
        small
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::pin::Pin;
    use tokio::io::{AsyncWriteExt, ReadBuf};

    #[tokio::test]
    async fn small_writes_are_merged() {
        let (mut app, mut ours) = tokio::io::duplex(1 << 20);
        for byte in 0..100u8 {
            app.write_all(&[byte]).await.unwrap();
        }
        let mut buffer = ReadBuffer::new();
        let piece = poll_fn(|cx| buffer.poll_fill(cx, &mut ours)).await.unwrap();
        assert_eq!(piece, (0..100u8).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn read_size_grows_and_shrinks_with_the_traffic() {
        let (mut app, mut ours) = tokio::io::duplex(4 << 20);
        app.write_all(&vec![7; 2 << 20]).await.unwrap();
        let mut buffer = ReadBuffer::new();
        let mut sizes = Vec::new();
        for _ in 0..7 {
            sizes.push(poll_fn(|cx| buffer.poll_fill(cx, &mut ours)).await.unwrap().len() / 1024);
        }
        assert_eq!(sizes, [16, 32, 64, 128, 256, 256, 256]);
        let mut rest = 2048 - sizes.iter().sum::<usize>();
        while rest > 0 {
            rest -= poll_fn(|cx| buffer.poll_fill(cx, &mut ours)).await.unwrap().len() / 1024;
        }
        for _ in 0..5 {
            app.write_all(b"x").await.unwrap();
            assert_eq!(poll_fn(|cx| buffer.poll_fill(cx, &mut ours)).await.unwrap(), "x");
        }
        assert_eq!(buffer.size, MIN);
    }

    /// Bytes, then an error once, then EOF, as a socket that was reset.
    struct Reset(Option<&'static [u8]>, bool);

    impl AsyncRead for Reset {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            match self.0.take() {
                Some(bytes) => buf.put_slice(bytes),
                None if std::mem::take(&mut self.1) => {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                None => {}
            }
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn error_after_bytes_is_returned_by_the_next_read() {
        let (mut buffer, mut from) = (ReadBuffer::new(), Reset(Some(b"last"), true));
        assert_eq!(poll_fn(|cx| buffer.poll_fill(cx, &mut from)).await.unwrap(), "last");
        let error = poll_fn(|cx| buffer.poll_fill(cx, &mut from)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn idle_buffer_is_freed_and_eof_is_empty_bytes() {
        let (mut app, mut ours) = tokio::io::duplex(64);
        let mut buffer = ReadBuffer::new();
        let idle = poll_fn(|cx| Poll::Ready(buffer.poll_fill(cx, &mut ours).is_pending())).await;
        assert!(idle);
        assert_eq!(buffer.buf.capacity(), 0);
        app.write_all(b"last").await.unwrap();
        drop(app);
        assert_eq!(poll_fn(|cx| buffer.poll_fill(cx, &mut ours)).await.unwrap(), "last");
        assert_eq!(poll_fn(|cx| buffer.poll_fill(cx, &mut ours)).await.unwrap(), "");
    }
}
