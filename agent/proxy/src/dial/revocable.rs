//! A session that ends when its peer is revoked: to whoever reads or writes it, the connection fails at that moment, with
//! a text by which its streams are recorded. Knows no list; see [`Vouched`].

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use isthmus_hbone::TlsError;
use isthmus_hbone::session::TlsSession;
use isthmus_identity::{Certificate, PeerRole, Vouched, is_revocation};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::error::Error;
use crate::error::revocation::REVOKED;
use crate::telemetry::Metrics;
use crate::types::Reporter;

/// A byte stream whose peer may be revoked.
#[derive(Debug)]
pub(crate) struct Revocable<S> {
    io: S,
    peer: Vouched,
    /// Counted once: what it counts for.
    count: Option<Counted>,
}

#[derive(Debug)]
struct Counted {
    metrics: Arc<Metrics>,
    reporter: Reporter,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Revocable<TlsSession<S>> {
    /// The outcome of a handshake that was made with `ours`: a session that watches the peer, or the error, counted if
    /// it is a list's doing.
    pub(crate) fn of(
        outcome: Result<TlsSession<S>, TlsError>,
        ours: &Certificate,
        peer: PeerRole,
        metrics: &Arc<Metrics>,
        reporter: Reporter,
    ) -> Result<Self, Error> {
        let session = outcome.inspect_err(|error| {
            if matches!(error, TlsError::Tls(error) if is_revocation(error)) {
                metrics.crl_rejected(reporter);
            }
        })?;
        let vouched = ours.vouch(session.state(), peer);
        if ours.is_revocable() && !vouched.is_tracked() {
            metrics.crl_untracked(reporter);
        }
        Ok(Self::new(session, vouched, metrics, reporter))
    }

    /// The session.
    pub(crate) fn session(&self) -> &TlsSession<S> {
        &self.io
    }
}

impl<S> Revocable<S> {
    fn new(io: S, peer: Vouched, metrics: &Arc<Metrics>, reporter: Reporter) -> Self {
        let count = peer.is_tracked().then(|| Counted { metrics: Arc::clone(metrics), reporter });
        Self { io, peer, count }
    }

    fn revoked(&mut self) -> io::Error {
        if let Some(Counted { metrics, reporter }) = self.count.take() {
            metrics.crl_rejected(reporter);
        }
        io::Error::new(io::ErrorKind::PermissionDenied, REVOKED)
    }

    fn stands(&mut self) -> io::Result<()> {
        if self.peer.is_revoked() { Err(self.revoked()) } else { Ok(()) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Revocable<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stands()?;
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        // Only who waits needs to be woken.
        if read.is_pending() && self.peer.poll_revoked(cx).is_ready() {
            return Poll::Ready(Err(self.revoked()));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Revocable<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stands()?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stands()?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stands()?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stands()?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn a_peer_that_is_not_tracked_is_read_as_ever() {
        let metrics = Metrics::register(&isthmus_rt::metrics::Registry::default());
        let mut io = Revocable::new(&b"abc"[..], Vouched::default(), &metrics, Reporter::Source);
        let mut text = String::new();
        io.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "abc");
    }
}
