//! 15008: mutual TLS, then a tunnel whose every CONNECT is judged by itself. [`accept`] ends where the peer is proven;
//! [`serve`] begins there and does not know how it was.

mod admit;
mod app_tunnel;
mod stream;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_hbone::Transport;
use isthmus_hbone::server::{self, Request};
use isthmus_hbone::session::TlsSession;
use isthmus_identity::{PeerIdentity, PeerRole};
use isthmus_rt::drain::Watch;
use isthmus_rt::task::{Spawnable, Tasks};
use tokio::net::TcpStream;

use crate::access_log;
use crate::error::Error;
use crate::listener::Accepted;
use crate::metrics::Reporter;
use crate::places::Place;
use crate::record::Direction;
use crate::revocable::Revocable;
use crate::scope::Scope;

/// Where a tunnel comes from and where it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    /// Who the client proved to be.
    pub(crate) peer: PeerIdentity,
    pub(crate) source: SocketAddr,
    pub(crate) local: SocketAddr,
}

/// A peer that finished its handshake, and the session with it.
pub(crate) type Proven = (PeerIdentity, Revocable<TlsSession<TcpStream>>);

/// Serves one connection to the HBONE port to its end.
pub(crate) async fn accept(scope: Arc<Scope>, accepted: Accepted, drain: Watch) {
    let _open = scope.world().metrics.socket(Reporter::Destination);
    scope.sockets().accepted(&accepted.stream);
    let Accepted { stream, source, local, place, .. } = accepted;
    let proven = tokio::select! {
        biased;
        () = drain.forced() => return,
        proven = prove(&scope, stream, place) => proven,
    };
    match proven {
        Ok((peer, session)) => serve(scope, peer, source, local, session, drain).await,
        Err(error) => access_log::early(source, local, Direction::Inbound, &error),
    }
}

/// The server's side of mutual TLS, as the pod. The place is for the handshake only.
pub(crate) async fn prove(scope: &Scope, stream: TcpStream, place: Option<Place>) -> Result<Proven, Error> {
    in_place(scope, place, handshake(scope, stream)).await
}

/// Sets a connection up, for as long as it has its place.
pub(crate) async fn in_place<T>(
    scope: &Scope,
    place: Option<Place>,
    set_up: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let Some(mut place) = place else { return set_up.await };
    tokio::select! {
        biased;
        done = set_up => done,
        () = place.lost() => Err(Error::Crowded(scope.world().config.handshake_safe)),
    }
}

async fn handshake(scope: &Scope, stream: TcpStream) -> Result<Proven, Error> {
    let world = scope.world();
    let workload = scope.workload().await?;
    let certificate = scope.certificate(&workload.identity()).await?;
    let done = TlsSession::accept(certificate.server_config(), stream, world.config.tls_deadline).await;
    let reporter = match scope.reporter() {
        Reporter::Source | Reporter::Destination => Reporter::Destination,
        Reporter::Gateway => Reporter::Gateway,
    };
    let session = Revocable::of(done, &certificate, PeerRole::Client, &world.metrics, reporter)?;
    let peer = PeerIdentity::of(session.session().state()).ok_or(Error::NoPeerIdentity)?;
    Ok((peer, session))
}

/// Serves the tunnels of a proven peer over any byte stream, until the peer closes it or the drain ends it. Every
/// CONNECT is a task of its own: a slow one delays no other.
pub(crate) async fn serve<S: Transport>(
    scope: Arc<Scope>,
    peer: PeerIdentity,
    source: SocketAddr,
    local: SocketAddr,
    io: S,
    drain: Watch,
) {
    let arrival = Arc::new(Arrival { peer, source, local });
    let each = |request| stream::serve(Arc::clone(&scope), Arc::clone(&arrival), request);
    drive(&scope, source, io, drain, each).await;
}

/// Drives the server's end of a tunnel, each request in a task of its own, until all of them have ended.
pub(crate) async fn drive<S, F, Fut>(scope: &Scope, source: SocketAddr, io: S, drain: Watch, mut each: F)
where
    S: Transport,
    F: FnMut(Request) -> Fut,
    Fut: Spawnable + Future<Output = ()>,
{
    let streams = Tasks::new(scope.owner());
    let (settings, share) = (&scope.world().settings, scope.share());
    let on_request = |request| {
        streams.spawn("inbound stream", share.run(each(request)));
    };
    if let Err(reason) = server::serve(io, settings, drain.clone(), on_request).await {
        tracing::debug!(pod = %scope.name(), %source, %reason, "inbound tunnel ended");
    }
    // What was copied to the end may still be on its way to the application.
    tokio::select! {
        () = streams.wait() => {}
        () = drain.forced() => {}
    }
}

/// Bytes of the future that serves one CONNECT.
#[cfg(test)]
pub(crate) fn stream_future_size() -> usize {
    crate::sizes::of(stream::serve)
}
