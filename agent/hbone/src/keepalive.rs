//! Keepalive: whether the peer of a tunnel is still there. Every received byte counts; a PING is sent only after silence.
//!
//! Pinging only after silence has a second reason. The engine does not read while it owes an answer to a PING and cannot
//! write; two peers that both send in bulk and ping each other could wait for each other until both time out.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::close_reason::CloseReason;
use crate::error::TunnelError;
use crate::settings::Settings;

/// When a byte was last received.
#[derive(Debug)]
pub(crate) struct LastActivity {
    start: Instant,
    /// Nanoseconds since `start`.
    last: AtomicU64,
}

/// A tunnel's transport: notes received bytes, and typed reasons in its errors.
#[derive(Debug)]
pub(crate) struct ActivityIo<S> {
    io: S,
    activity: Arc<LastActivity>,
    close_reason: Arc<CloseReason>,
}

// === impl LastActivity ===

impl LastActivity {
    fn record(&self) {
        let nanos = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.last.store(nanos, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.start + Duration::from_nanos(self.last.load(Ordering::Relaxed))
    }
}

/// Sends PINGs after silence; returns when the peer did not break it in time.
pub(crate) async fn peer_silent(
    mut pings: Option<PingPong>,
    activity: Arc<LastActivity>,
    settings: &Settings,
) -> TunnelError {
    let (interval, timeout) = (settings.ping_interval, settings.ping_timeout);
    let Some(pings) = pings.as_mut() else { return std::future::pending().await };
    // The engine allows one PING in flight; a peer that answers late, or only sends data, is alive all the same.
    let mut unanswered = false;
    let mut pinged: Option<Instant> = None;
    loop {
        let (now, last) = (Instant::now(), activity.last());
        let next = match pinged.filter(|at| last < *at) {
            Some(at) if now >= at + timeout => return TunnelError::KeepaliveTimeout(timeout),
            Some(at) => (at + timeout).min(now + interval),
            None if now < last + interval => last + interval,
            None => {
                unanswered = unanswered && !pong_received(pings).await;
                unanswered = unanswered || pings.send_ping(Ping::opaque()).is_ok();
                pinged = Some(now);
                now + timeout.min(interval)
            }
        };
        tokio::time::sleep_until(next).await;
    }
}

/// Consumes the answer to the last PING if it has arrived, without waiting for it.
async fn pong_received(pings: &mut PingPong) -> bool {
    std::future::poll_fn(|cx| Poll::Ready(pings.poll_pong(cx).is_ready())).await
}

// === impl ActivityIo ===

impl<S> ActivityIo<S> {
    pub(crate) fn new(io: S, close_reason: Arc<CloseReason>) -> Self {
        let activity = LastActivity { start: Instant::now(), last: AtomicU64::new(0) };
        Self { io, activity: Arc::new(activity), close_reason }
    }

    pub(crate) fn activity(&self) -> Arc<LastActivity> {
        Arc::clone(&self.activity)
    }

    fn record_error(&self, error: &io::Error) {
        self.close_reason.record_io(error);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ActivityIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.record();
        }
        if let Poll::Ready(Err(error)) = &read {
            self.record_error(error);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ActivityIo<S> {
    isthmus_rt::io::forward_write!(io, on_error = record_error);
    isthmus_rt::io::forward_shutdown!(io, on_error = record_error);
}
