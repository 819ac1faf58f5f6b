//! A TLS session that fails once its peer is revoked: reads and writes return [`PeerRevoked`], by which the tunnel above
//! and its streams recognize the reason. It does not know the revocation lists; see [`RevocationWatch`].

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use isthmus_hbone::session::TlsSession;
use isthmus_hbone::{Link, PeerRevoked, TlsError, Transport, TunnelError};
use isthmus_identity::{MeshTls, PeerEvidence, PeerIdentity, RevocationWatch, is_revocation};
use isthmus_rt::descriptors::DescriptorPermit;
use isthmus_rt::io::{forward_shutdown, forward_write};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::error::Error;
use crate::telemetry::Metrics;
use crate::types::Reporter;

/// A byte stream whose peer may be revoked.
#[derive(Debug)]
pub(crate) struct Revocable<S> {
    io: S,
    watch: RevocationWatch,
    /// Taken when the revocation is counted: once per connection.
    counter: Option<RevocationCounter>,
    /// What the peer presented.
    evidence: Option<PeerEvidence>,
    /// Counts the descriptor below, where that is not done by the task that uses the session.
    descriptor: Option<DescriptorPermit>,
}

/// What is kept of the peer of a session.
#[derive(Debug)]
pub(crate) struct SessionPeer {
    pub(crate) watch: RevocationWatch,
    pub(crate) evidence: Option<PeerEvidence>,
}

#[derive(Debug)]
struct RevocationCounter {
    metrics: Arc<Metrics>,
    reporter: Reporter,
}

/// An established session and the identity that its peer proved.
pub(crate) type ProvenSession<S> = (Revocable<TlsSession<S>>, Option<PeerIdentity>);

impl<S: AsyncRead + AsyncWrite + Unpin> Revocable<TlsSession<S>> {
    /// Takes the outcome of the handshake that was made with `tls`: registers the peer for revocation, or counts the
    /// failure if a revocation list caused it.
    pub(crate) fn after_handshake<C>(
        outcome: Result<TlsSession<S>, TlsError>,
        tls: &MeshTls<C>,
        metrics: &Arc<Metrics>,
        reporter: Reporter,
    ) -> Result<ProvenSession<S>, Error> {
        let session = outcome.inspect_err(|error| {
            if matches!(error, TlsError::Tls(error) if is_revocation(error)) {
                metrics.crl_rejected(reporter);
            }
        })?;
        let watch = tls.watch_revocation(session.state());
        if tls.is_revocable() && !watch.is_registered() {
            metrics.crl_untracked(reporter);
        }
        let peer = tls.peer(session.state());
        let evidence = tls.evidence(session.state());
        Ok((Self::new(session, SessionPeer { watch, evidence }, metrics, reporter), peer))
    }
}

impl<S> Revocable<S> {
    /// A session whose peer is known.
    pub(crate) fn new(io: S, peer: SessionPeer, metrics: &Arc<Metrics>, reporter: Reporter) -> Self {
        let SessionPeer { watch, evidence } = peer;
        let counter =
            watch.is_registered().then(|| RevocationCounter { metrics: Arc::clone(metrics), reporter });
        Self { io, watch, counter, evidence, descriptor: None }
    }

    /// Keeps the permit of the descriptor below for as long as the session lives.
    pub(crate) fn with_descriptor(self, descriptor: DescriptorPermit) -> Self {
        Self { descriptor: Some(descriptor), ..self }
    }

    /// The byte stream below, and what is known of its peer.
    pub(crate) fn into_parts(self) -> (S, SessionPeer) {
        let Self { io, watch, counter: _, evidence, descriptor: _ } = self;
        (io, SessionPeer { watch, evidence })
    }

    fn revoked(&mut self) -> io::Error {
        if let Some(RevocationCounter { metrics, reporter }) = self.counter.take() {
            metrics.crl_rejected(reporter);
        }
        PeerRevoked.into()
    }

    fn ensure_not_revoked(&mut self) -> io::Result<()> {
        if self.watch.is_revoked() { Err(self.revoked()) } else { Ok(()) }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Transport for Revocable<TlsSession<S>> {
    type Io = Revocable<S>;

    fn into_link(self) -> Result<Link<Self::Io>, TunnelError> {
        let Self { io, watch, counter, evidence, descriptor } = self;
        Ok(io.into_link()?.map(|io| Revocable { io, watch, counter, evidence, descriptor }))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Revocable<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.ensure_not_revoked()?;
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        // Registered only while there is nothing to read: every other poll checks the flag first.
        if read.is_pending() && self.watch.poll_revoked(cx).is_ready() {
            return Poll::Ready(Err(self.revoked()));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Revocable<S> {
    forward_write!(io, before = ensure_not_revoked);
    forward_shutdown!(io, before = ensure_not_revoked);
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn unregistered_peer_is_read_without_checks() {
        let metrics = Metrics::register(&isthmus_rt::metrics::Registry::default());
        let peer = SessionPeer { watch: RevocationWatch::default(), evidence: None };
        let mut io = Revocable::new(&b"abc"[..], peer, &metrics, Reporter::Source);
        let mut text = String::new();
        io.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "abc");
    }
}
