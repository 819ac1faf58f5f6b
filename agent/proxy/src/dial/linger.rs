//! The stream that carries an inner tunnel, with the close of a TCP socket: shutdown waits for the peer's end of
//! stream. An HTTP/2 stream that is dropped right after its END_STREAM is reset, and the gateway would record a
//! finished connection as failed. Knows nothing of the tunnel above.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use isthmus_rt::io::{forward_read, forward_write};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// How long a shutdown waits for the peer's end of stream.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A byte stream whose shutdown completes when both directions have ended, or after a timeout.
#[derive(Debug)]
pub(crate) struct Linger<S> {
    io: S,
    closing: Option<Pin<Box<Sleep>>>,
}

impl<S> Linger<S> {
    pub(crate) fn new(io: S) -> Self {
        Self { io, closing: None }
    }
}

impl<S: AsyncRead + Unpin> Linger<S> {
    /// Reads until the peer's end of stream, and discards what is read: the tunnel above is closed already.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut discarded = [0; 1024];
        loop {
            let mut buf = ReadBuf::new(&mut discarded);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {}
                _ => return Poll::Ready(()),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Linger<S> {
    forward_write!(io);

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.closing.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
        }
        let deadline = this.closing.get_or_insert_with(|| Box::pin(sleep(CLOSE_TIMEOUT)));
        if deadline.as_mut().poll(cx).is_pending() {
            ready!(this.poll_discard(cx));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Linger<S> {
    forward_read!(io);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn shutdown_waits_for_the_peers_end_of_stream() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut near = Linger::new(near);
        let other = async {
            let mut received = Vec::new();
            far.read_to_end(&mut received).await.unwrap();
            sleep(Duration::from_secs(2)).await;
            far.write_all(b"goodbye").await.unwrap();
            drop(far);
            received
        };
        near.write_all(b"bye").await.unwrap();
        let start = Instant::now();
        let (ended, received) = tokio::join!(near.shutdown(), other);
        ended.unwrap();
        assert_eq!((start.elapsed().as_secs(), received), (2, b"bye".to_vec()));
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_completes_at_its_timeout() {
        let (near, _far) = tokio::io::duplex(64);
        let start = Instant::now();
        Linger::new(near).shutdown().await.unwrap();
        assert_eq!(start.elapsed(), CLOSE_TIMEOUT);
    }
}
