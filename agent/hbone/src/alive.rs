//! Whether the peer is still there: every received byte counts, a PING is sent only into silence.
//!
//! Pinging only when nothing was received has a second reason. The engine does not read while it owes an answer to a
//! PING and cannot write; two peers that both send in bulk and ping each other could wait for each other until both
//! time out.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::{Settings, TunnelError};

/// When something was last received.
#[derive(Debug)]
pub(crate) struct Heard {
    start: Instant,
    last: AtomicU64,
}

impl Heard {
    fn now(&self) {
        let nanos = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.last.store(nanos, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.start + Duration::from_nanos(self.last.load(Ordering::Relaxed))
    }
}

/// A transport that notes when something was received.
#[derive(Debug)]
pub(crate) struct Listening<S> {
    io: S,
    heard: Arc<Heard>,
}

impl<S> Listening<S> {
    pub(crate) fn new(io: S) -> Self {
        Self { io, heard: Arc::new(Heard { start: Instant::now(), last: AtomicU64::new(0) }) }
    }

    pub(crate) fn heard(&self) -> Arc<Heard> {
        Arc::clone(&self.heard)
    }
}

/// Pings into silence; returns when the peer did not break it.
pub(crate) async fn lost(mut pings: Option<PingPong>, heard: Arc<Heard>, settings: &Settings) -> TunnelError {
    let (interval, timeout) = (settings.ping_interval, settings.ping_timeout);
    let Some(pings) = pings.as_mut() else { return std::future::pending().await };
    // One PING at a time is the engine's limit; a peer that answers late, or only sends data, is still there.
    let mut unanswered = false;
    let mut pinged: Option<Instant> = None;
    loop {
        let (now, last) = (Instant::now(), heard.last());
        let next = match pinged.filter(|at| last < *at) {
            Some(at) if now >= at + timeout => return TunnelError::KeepaliveTimeout(timeout),
            Some(at) => (at + timeout).min(now + interval),
            None if now < last + interval => last + interval,
            None => {
                unanswered = unanswered && !answered(pings).await;
                unanswered = unanswered || pings.send_ping(Ping::opaque()).is_ok();
                pinged = Some(now);
                now + timeout.min(interval)
            }
        };
        tokio::time::sleep_until(next).await;
    }
}

/// Takes the answer to the last PING when it is there, without waiting for it.
async fn answered(pings: &mut PingPong) -> bool {
    std::future::poll_fn(|cx| Poll::Ready(pings.poll_pong(cx).is_ready())).await
}

impl<S: AsyncRead + Unpin> AsyncRead for Listening<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.heard.now();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Listening<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
