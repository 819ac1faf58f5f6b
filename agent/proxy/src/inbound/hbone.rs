//! Port 15008: mutual TLS, then an HBONE tunnel; each CONNECT is authorized separately. [`accept`] authenticates the
//! peer; [`serve`] takes any byte stream of an authenticated peer and does not depend on TLS.

use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_hbone::Transport;
use isthmus_hbone::server::Server;
use isthmus_identity::PeerIdentity;
use isthmus_rt::drain::Watch;
use isthmus_rt::task::Tasks;
use tokio::io::{AsyncRead, AsyncWrite};

use super::request::InboundTunnel;
use super::stream::{self, MovedStream};
use crate::accept::Accepted;
use crate::context::PodContext;
use crate::server::{self, drive, prove};
use crate::telemetry::access_log;
use crate::types::{Direction, Reporter};

/// Serves one connection to the HBONE port to its end.
pub(crate) async fn accept(ctx: Arc<PodContext>, accepted: Accepted, drain: Watch) {
    let metrics = Arc::clone(&ctx.proxy().metrics);
    let _socket_count = metrics.count_socket(Reporter::Destination);
    let local = accepted.local();
    let Accepted { stream, source, slot, .. } = accepted;
    let authenticated = tokio::select! {
        biased;
        () = drain.forced() => return,
        authenticated = prove(&ctx, stream, slot) => authenticated,
    };
    match authenticated {
        Ok((peer, session)) => serve(ctx, peer, source, local, session, drain).await,
        Err(error) => access_log::failed(&metrics, (source, local), Direction::Inbound, &error),
    }
}

/// Serves the tunnel of an authenticated peer until the peer closes it or the drain ends it. Each CONNECT is a task
/// of its own, so that a slow one delays no other.
pub(crate) async fn serve<S: Transport>(
    ctx: Arc<PodContext>,
    peer: PeerIdentity,
    source: SocketAddr,
    local: SocketAddr,
    io: S,
    drain: Watch,
) {
    let tunnel = Arc::new(InboundTunnel { peer, source, local });
    let on_request = |request| stream::serve(Arc::clone(&ctx), Arc::clone(&tunnel), request);
    let from = (&tunnel.peer, source, local);
    drive(&ctx, from, io, drain, on_request).await;
}

/// Serves a tunnel that another process had accepted, until it ends.
pub(crate) async fn resume<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    ctx: Arc<PodContext>,
    tunnel: InboundTunnel,
    server: Server<S>,
    moved: Vec<MovedStream>,
    drain: Watch,
) {
    let _socket_count = ctx.proxy().metrics.count_socket(Reporter::Destination);
    let streams = Tasks::new(ctx.owner()).on(ctx.share());
    for moved in moved {
        streams.spawn("inbound stream", stream::resume(Arc::clone(&ctx), tunnel.clone(), moved));
    }
    let tunnel = Arc::new(tunnel);
    let on_request = |request| stream::serve(Arc::clone(&ctx), Arc::clone(&tunnel), request);
    let from = (&tunnel.peer, tunnel.source, tunnel.local);
    server::run(&ctx, from, server, streams, drain, on_request).await;
}
