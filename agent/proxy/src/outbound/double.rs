//! A connection to another network: a tunnel to its gateway, and in it a tunnel to the far workload's own agent, which
//! the gateway cannot read. The outer one is pooled; the inner one is this connection's, so that the gateway can choose
//! anew each time.

use isthmus_hbone::client::{self, Tunnel};
use isthmus_hbone::session::TlsSession;
use isthmus_hbone::{ResponseHead, Stream, StreamIo};
use isthmus_identity::{PeerIdentity, PeerRole};
use isthmus_model::SpiffeId;
use isthmus_state::route::{Inner, Upstream};

use super::flow::{Flow, Way};
use super::hbone::{carry, refuse};
use super::linger::Linger;
use crate::conns::Carrier;
use crate::error::Error;
use crate::labels;
use crate::revocable::Revocable;

/// The inner tunnel and its one stream.
struct Nested {
    tunnel: Tunnel,
    stream: Stream,
    answer: ResponseHead,
    peer: Option<SpiffeId>,
}

pub(super) async fn send(way: &Way<'_>, flow: Flow, upstream: &Upstream) {
    let mut record = way.record(&flow, upstream.tcp_to, Some(upstream.authority.clone()));
    let _tracked = way.track(&flow, upstream.tcp_to, Carrier::DoubleHbone);
    match Box::pin(open(way, &flow, upstream)).await {
        Ok(Nested { tunnel, stream, answer, peer }) => {
            let said = answer.baggage.filter(|_| way.scope.world().config.baggage);
            // Before it is counted as opened: only now is it known who serves.
            record.learn_destination(peer, said.as_deref().map(labels::from_baggage));
            let traffic = record.open();
            carry(flow, stream, record, &traffic).await;
            tunnel.close_gracefully();
        }
        Err(error) => refuse(&flow, record, &error),
    }
}

async fn open(way: &Way<'_>, flow: &Flow, upstream: &Upstream) -> Result<Nested, Error> {
    let Some(Inner { authority, identities }) = &upstream.inner else {
        return Err(Error::BadRequest("a route through a gateway has no inner target".to_owned()));
    };
    let world = way.scope.world();
    let outer = way.head(flow, upstream.authority.clone());
    let (carrier, _) = way.open(flow, upstream, &outer).await?;
    let certificate = way.scope.certificate(&way.identity()).await?;
    let config = certificate.client_config(identities);
    let done =
        TlsSession::connect(config, Linger::new(StreamIo::new(carrier)), world.config.tls_deadline).await;
    let reporter = way.scope.reporter();
    let session = Revocable::of(done, &certificate, PeerRole::Server, &world.metrics, reporter)?;
    let peer = PeerIdentity::of(session.session().state()).map(|peer| peer.id().clone());
    let tunnel = client::handshake(session, &world.settings, way.scope.tunnels()).await?;
    let mut head = outer;
    head.authority = authority.clone();
    head.forwarded_network = Some(world.network.to_string());
    let (stream, answer) = way.in_time(tunnel.open(&head)).await??;
    Ok(Nested { tunnel, stream, answer, peer })
}
