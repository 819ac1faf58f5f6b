//! One connection attempt: to an address, through a tunnel, or through two.
//!
//! A connection to another network has a tunnel to its gateway, and in it a tunnel to the agent of the endpoint, which
//! the gateway cannot read. The outer one is pooled; the inner one belongs to this connection alone, so that the gateway
//! can choose an endpoint anew each time.

use std::net::SocketAddr;

use isthmus_hbone::client::{self, Tunnel};
use isthmus_hbone::session::TlsSession;
use isthmus_hbone::{Head, Stream, StreamIo};
use isthmus_rt::descriptors::DescriptorPermit;
use isthmus_state::route::{DoubleTunnelTarget, InnerTunnelTarget, Route};
use tokio::net::TcpStream;

use super::flow::OutboundAttempt;
use super::retry_loop::{AttemptError, PeerClaims};
use crate::dial::linger::Linger;
use crate::dial::local_source;
use crate::dial::revocable::Revocable;
use crate::error::Error;
use crate::retry::Hop;
use crate::telemetry::baggage;

/// A connection to an upstream.
pub(super) enum UpstreamConn {
    Tcp(TcpStream, DescriptorPermit),
    /// The stream, and the inner tunnel that it belongs to, if there is one.
    Tunnel(Stream, Option<Tunnel>),
}

impl OutboundAttempt<'_> {
    /// Connects, up to the upstream's 200. Sends nothing of the application's.
    pub(super) async fn connect(&self) -> Result<(UpstreamConn, Option<PeerClaims>), AttemptError> {
        let conn = match &self.route {
            Route::Passthrough { to } => self.tcp(*to).await,
            Route::Tcp(target) => self.tcp(target.addr).await,
            Route::Hbone(target) => {
                let opened = self.open(target, &self.head(target.authority.clone())).await;
                opened.map(|(stream, _)| UpstreamConn::Tunnel(stream, None))
            }
            Route::DoubleHbone(target) => return self.double(target).await,
        };
        conn.map(|conn| (conn, None)).map_err(AttemptError::outer)
    }

    /// Without a tunnel, the server sees the address that the application bound, as it would without the mesh.
    async fn tcp(&self, to: SocketAddr) -> Result<UpstreamConn, Error> {
        let dialled = local_source::dial(self.ctx, self.flow.source.ip(), &self.workload, to).await;
        dialled.map(|(stream, descriptor)| UpstreamConn::Tcp(stream, descriptor))
    }

    async fn double(
        &self,
        target: &DoubleTunnelTarget,
    ) -> Result<(UpstreamConn, Option<PeerClaims>), AttemptError> {
        let head = self.head(target.outer.authority.clone());
        let (carrier, _) = self.open(&target.outer, &head).await.map_err(AttemptError::outer)?;
        let inner = self.inner(&target.inner, head, carrier).await;
        inner.map_err(|error| AttemptError { error, hop: Hop::Inner })
    }

    async fn inner(
        &self,
        target: &InnerTunnelTarget,
        mut head: Head,
        carrier: Stream,
    ) -> Result<(UpstreamConn, Option<PeerClaims>), Error> {
        let proxy = self.ctx.proxy();
        let certificate = self.ctx.certificate(&self.workload.identity()).await?;
        let tls = certificate.client_tls(target.identities.as_slice());
        let carrier = Linger::new(StreamIo::new(carrier));
        let outcome =
            TlsSession::connect_on(&self.ctx.offload(), tls.config(), carrier, proxy.config.tls_deadline)
                .await;
        let reporter = self.ctx.reporter();
        let (session, peer) = Revocable::after_handshake(outcome, &tls, &proxy.metrics, reporter)?;
        let proven = peer.map(|peer| peer.id().clone());
        let tunnel = client::start(session, self.ctx.settings(), self.ctx.tunnels())?;
        head.authority = target.authority.clone();
        head.forwarded_network = Some(proxy.network.to_string());
        let (stream, response) = self.in_time(tunnel.open(&head)).await??;
        let claimed = response.baggage.filter(|_| proxy.config.baggage);
        let claimed = claimed.as_deref().map(|claimed| baggage::from_baggage(claimed, proven.as_ref()));
        Ok((UpstreamConn::Tunnel(stream, Some(tunnel)), Some(PeerClaims { proven, claimed })))
    }
}
