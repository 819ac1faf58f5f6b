//! One try: to an address, through a tunnel, or through two. A connection to another network has a tunnel to its
//! gateway, and in it a tunnel to the far workload's own agent, which the gateway cannot read. The outer one is pooled;
//! the inner one is this connection's, so that the gateway can choose anew each time.

use isthmus_hbone::client::{self, Tunnel};
use isthmus_hbone::session::TlsSession;
use isthmus_hbone::{Head, Stream, StreamIo};
use isthmus_model::SpiffeId;
use isthmus_state::route::{Inner, Route, Upstream};
use tokio::net::TcpStream;

use super::flow::{Flow, OutboundAttempt};
use crate::dial::linger::Linger;
use crate::dial::revocable::Revocable;
use crate::error::Error;
use crate::retry::Hop;
use crate::telemetry::End;
use crate::telemetry::baggage;

/// What was connected to.
pub(super) enum UpstreamConn {
    Tcp(TcpStream),
    /// The stream, and the inner tunnel that it is of, if it is of one.
    Tunnel(Stream, Option<Tunnel>),
}

/// Who the far end proved to be, and what it says it is, where only it can know.
pub(super) type PeerClaims = Option<(Option<SpiffeId>, Option<End>)>;

/// A try that failed.
#[derive(Debug)]
pub(super) struct AttemptError {
    pub(super) error: Error,
    pub(super) depth: Hop,
}

impl AttemptError {
    pub(super) fn outer(error: Error) -> Self {
        Self { error, depth: Hop::Outer }
    }
}

impl OutboundAttempt<'_> {
    /// Connects, up to the far end's 200. Sends nothing of the application's.
    pub(super) async fn attempt(
        &self,
        flow: &Flow,
        route: &Route,
    ) -> Result<(UpstreamConn, PeerClaims), AttemptError> {
        let to = match route {
            Route::Hbone(upstream) => return self.tunnel(flow, upstream).await.map_err(AttemptError::outer),
            Route::DoubleHbone(upstream) => return self.double(flow, upstream).await,
            Route::Deny(reason) => return Err(AttemptError::outer(Error::Unroutable(reason.clone()))),
            Route::Passthrough { to } => *to,
            Route::Tcp(upstream) => upstream.tcp_to,
        };
        let deadline = self.ctx.proxy().config.dial_deadline;
        let connected = self.ctx.sockets().connect(to, None, deadline).await;
        let connected = connected.map_err(|error| AttemptError::outer(Error::Connect(error)))?;
        Ok((UpstreamConn::Tcp(connected), None))
    }

    async fn tunnel(&self, flow: &Flow, upstream: &Upstream) -> Result<(UpstreamConn, PeerClaims), Error> {
        let head = self.head(flow, upstream.authority.clone());
        let (stream, _) = self.open(flow, upstream, &head).await?;
        Ok((UpstreamConn::Tunnel(stream, None), None))
    }

    async fn double(
        &self,
        flow: &Flow,
        upstream: &Upstream,
    ) -> Result<(UpstreamConn, PeerClaims), AttemptError> {
        let head = self.head(flow, upstream.authority.clone());
        let (carrier, _) = self.open(flow, upstream, &head).await.map_err(AttemptError::outer)?;
        let nested = self.nested(upstream, head, carrier).await;
        nested.map_err(|error| AttemptError { error, depth: Hop::Inner })
    }

    async fn nested(
        &self,
        upstream: &Upstream,
        mut head: Head,
        carrier: Stream,
    ) -> Result<(UpstreamConn, PeerClaims), Error> {
        let Some(Inner { authority, identities }) = &upstream.inner else {
            return Err(Error::BadRequest("a route through a gateway has no inner target".to_owned()));
        };
        let proxy = self.ctx.proxy();
        let certificate = self.ctx.certificate(&self.identity()).await?;
        let tls = certificate.client_tls(identities);
        let carrier = Linger::new(StreamIo::new(carrier));
        let outcome = TlsSession::connect(tls.config(), carrier, proxy.config.tls_deadline).await;
        let reporter = self.ctx.reporter();
        let (session, peer) = Revocable::after_handshake(outcome, &tls, &proxy.metrics, reporter)?;
        let peer = peer.map(|peer| peer.id().clone());
        let tunnel = client::handshake(session, &proxy.settings, self.ctx.tunnels()).await?;
        head.authority = authority.clone();
        head.forwarded_network = Some(proxy.network.to_string());
        let (stream, answer) = self.in_time(tunnel.open(&head)).await??;
        let said = answer.baggage.filter(|_| proxy.config.baggage);
        let learnt = (peer, said.as_deref().map(baggage::from_baggage));
        Ok((UpstreamConn::Tunnel(stream, Some(tunnel)), Some(learnt)))
    }
}
