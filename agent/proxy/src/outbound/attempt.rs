//! One try: to an address, through a tunnel, or through two. A connection to another network has a tunnel to its
//! gateway, and in it a tunnel to the far workload's own agent, which the gateway cannot read. The outer one is pooled;
//! the inner one is this connection's, so that the gateway can choose anew each time.

use isthmus_hbone::client::{self, Tunnel};
use isthmus_hbone::session::TlsSession;
use isthmus_hbone::{Head, Stream, StreamIo};
use isthmus_identity::{PeerIdentity, PeerRole};
use isthmus_model::SpiffeId;
use isthmus_state::route::{Inner, Route, Upstream};
use tokio::net::TcpStream;

use super::flow::{Flow, Way};
use super::linger::Linger;
use super::retry::Depth;
use crate::error::Error;
use crate::labels;
use crate::record::End;
use crate::revocable::Revocable;

/// What was connected to.
pub(super) enum Far {
    Tcp(TcpStream),
    /// The stream, and the inner tunnel that it is of, if it is of one.
    Tunnel(Stream, Option<Tunnel>),
}

/// Who the far end proved to be, and what it says it is, where only it can know.
pub(super) type Learnt = Option<(Option<SpiffeId>, Option<End>)>;

/// A try that failed.
#[derive(Debug)]
pub(super) struct Missed {
    pub(super) error: Error,
    pub(super) depth: Depth,
}

impl Missed {
    pub(super) fn outer(error: Error) -> Self {
        Self { error, depth: Depth::Outer }
    }
}

impl Way<'_> {
    /// Connects, up to the far end's 200. Sends nothing of the application's.
    pub(super) async fn attempt(&self, flow: &Flow, route: &Route) -> Result<(Far, Learnt), Missed> {
        let to = match route {
            Route::Hbone(upstream) => return self.tunnel(flow, upstream).await.map_err(Missed::outer),
            Route::DoubleHbone(upstream) => return self.double(flow, upstream).await,
            Route::Deny(reason) => return Err(Missed::outer(Error::Unroutable(reason.clone()))),
            Route::Passthrough { to } => *to,
            Route::Tcp(upstream) => upstream.tcp_to,
        };
        let deadline = self.scope.world().config.dial_deadline;
        let connected = self.scope.sockets().connect(to, None, deadline).await;
        let connected = connected.map_err(|error| Missed::outer(Error::Connect(error)))?;
        Ok((Far::Tcp(connected), None))
    }

    async fn tunnel(&self, flow: &Flow, upstream: &Upstream) -> Result<(Far, Learnt), Error> {
        let head = self.head(flow, upstream.authority.clone());
        let (stream, _) = self.open(flow, upstream, &head).await?;
        Ok((Far::Tunnel(stream, None), None))
    }

    async fn double(&self, flow: &Flow, upstream: &Upstream) -> Result<(Far, Learnt), Missed> {
        let head = self.head(flow, upstream.authority.clone());
        let (carrier, _) = self.open(flow, upstream, &head).await.map_err(Missed::outer)?;
        let nested = self.nested(upstream, head, carrier).await;
        nested.map_err(|error| Missed { error, depth: Depth::Inner })
    }

    async fn nested(
        &self,
        upstream: &Upstream,
        mut head: Head,
        carrier: Stream,
    ) -> Result<(Far, Learnt), Error> {
        let Some(Inner { authority, identities }) = &upstream.inner else {
            return Err(Error::BadRequest("a route through a gateway has no inner target".to_owned()));
        };
        let world = self.scope.world();
        let certificate = self.scope.certificate(&self.identity()).await?;
        let config = certificate.client_config(identities);
        let done =
            TlsSession::connect(config, Linger::new(StreamIo::new(carrier)), world.config.tls_deadline).await;
        let reporter = self.scope.reporter();
        let session = Revocable::of(done, &certificate, PeerRole::Server, &world.metrics, reporter)?;
        let peer = PeerIdentity::of(session.session().state()).map(|peer| peer.id().clone());
        let tunnel = client::handshake(session, &world.settings, self.scope.tunnels()).await?;
        head.authority = authority.clone();
        head.forwarded_network = Some(world.network.to_string());
        let (stream, answer) = self.in_time(tunnel.open(&head)).await??;
        let said = answer.baggage.filter(|_| world.config.baggage);
        let learnt = (peer, said.as_deref().map(labels::from_baggage));
        Ok((Far::Tunnel(stream, Some(tunnel)), Some(learnt)))
    }
}
