//! The stream below an inner tunnel, closed as politely as a socket would be: after our end it waits for the other one.
//! Dropped right after our end, the stream would be reset, and the gateway would take a finished connection for a
//! broken one.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use isthmus_rt::io::{forward_read, forward_write};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// How long the other end may take to end too.
const PATIENCE: Duration = Duration::from_secs(5);

/// A byte stream whose shutdown ends when both directions have, or after a while.
#[derive(Debug)]
pub(crate) struct Linger<S> {
    io: S,
    ending: Option<Pin<Box<Sleep>>>,
}

impl<S> Linger<S> {
    pub(crate) fn new(io: S) -> Self {
        Self { io, ending: None }
    }
}

impl<S: AsyncRead + Unpin> Linger<S> {
    /// Reads, to nobody, until the other end has ended. What comes after our end is no part of any connection.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut nowhere = [0; 1024];
        loop {
            let mut buf = ReadBuf::new(&mut nowhere);
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
        if this.ending.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
        }
        let deadline = this.ending.get_or_insert_with(|| Box::pin(sleep(PATIENCE)));
        if deadline.as_mut().poll(cx).is_pending() {
            ready!(this.poll_end(cx));
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
    async fn the_shutdown_waits_for_the_other_end() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut near = Linger::new(near);
        let other = async {
            let mut heard = Vec::new();
            far.read_to_end(&mut heard).await.unwrap();
            sleep(Duration::from_secs(2)).await;
            far.write_all(b"goodbye").await.unwrap();
            drop(far);
            heard
        };
        near.write_all(b"bye").await.unwrap();
        let begun = Instant::now();
        let (ended, heard) = tokio::join!(near.shutdown(), other);
        ended.unwrap();
        assert_eq!((begun.elapsed().as_secs(), heard), (2, b"bye".to_vec()));
    }

    #[tokio::test(start_paused = true)]
    async fn but_not_for_ever() {
        let (near, _far) = tokio::io::duplex(64);
        let begun = Instant::now();
        Linger::new(near).shutdown().await.unwrap();
        assert_eq!(begun.elapsed(), PATIENCE);
    }
}
