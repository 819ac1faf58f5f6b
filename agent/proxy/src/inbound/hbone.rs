//! 15008: mutual TLS, then a tunnel whose every CONNECT is judged by itself. [`accept`] ends where the peer is proven;
//! [`serve`] begins there and does not know how it was.

use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_hbone::Transport;
use isthmus_identity::PeerIdentity;
use isthmus_rt::drain::Watch;

use super::request::Arrival;
use super::stream;
use crate::accept::Accepted;
use crate::context::PodContext;
use crate::server::{drive, prove};
use crate::telemetry::access_log;
use crate::types::{Direction, Reporter};

/// Serves one connection to the HBONE port to its end.
pub(crate) async fn accept(ctx: Arc<PodContext>, accepted: Accepted, drain: Watch) {
    let _open = ctx.proxy().metrics.socket(Reporter::Destination);
    ctx.sockets().accepted(&accepted.stream);
    let Accepted { stream, source, local, place, .. } = accepted;
    let proven = tokio::select! {
        biased;
        () = drain.forced() => return,
        proven = prove(&ctx, stream, place) => proven,
    };
    match proven {
        Ok((peer, session)) => serve(ctx, peer, source, local, session, drain).await,
        Err(error) => access_log::early(source, local, Direction::Inbound, &error),
    }
}

/// Serves the tunnels of a proven peer over any byte stream, until the peer closes it or the drain ends it. Every
/// CONNECT is a task of its own: a slow one delays no other.
pub(crate) async fn serve<S: Transport>(
    ctx: Arc<PodContext>,
    peer: PeerIdentity,
    source: SocketAddr,
    local: SocketAddr,
    io: S,
    drain: Watch,
) {
    let arrival = Arc::new(Arrival { peer, source, local });
    let each = |request| stream::serve(Arc::clone(&ctx), Arc::clone(&arrival), request);
    drive(&ctx, source, io, drain, each).await;
}

/// Bytes of the future that serves one CONNECT.
#[cfg(test)]
pub(crate) fn stream_future_size() -> usize {
    crate::sizes::of(stream::serve)
}
