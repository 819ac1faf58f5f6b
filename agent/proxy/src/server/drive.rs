//! Drives the server side of a tunnel over the byte stream of an authenticated peer, and spawns a task per request.
//! Does not know what a request is for.

use std::future::Future;
use std::net::SocketAddr;

use isthmus_hbone::Transport;
use isthmus_hbone::server::{self, Request, Server};
use isthmus_identity::PeerIdentity;
use isthmus_rt::drain::Watch;
use isthmus_rt::task::{Spawnable, Tasks};
use isthmus_rt::threads::Thread;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::context::{AcceptedTunnel, PodContext};
use crate::error::Error;
use crate::telemetry::access_log;
use crate::types::Direction;

/// Serves a tunnel until it is closed and the task of each request has ended, or the drain is forced.
pub(crate) async fn drive<S, F, Fut>(
    ctx: &PodContext,
    (peer, source, local): (&PeerIdentity, SocketAddr, SocketAddr),
    io: S,
    drain: Watch,
    on_request: F,
) where
    S: Transport,
    F: FnMut(Request) -> Fut,
    Fut: Spawnable + Future<Output = ()>,
{
    let settings = match ctx.settings_for(peer.id(), source.ip()) {
        Ok(settings) => settings,
        Err(refusal) => {
            access_log::failed(
                &ctx.proxy().metrics,
                (source, local),
                Direction::Inbound,
                &Error::from(refusal),
            );
            let _ = server::refuse(io, ctx.settings(), &refusal.to_string()).await;
            return;
        }
    };
    match Server::new(io, &settings) {
        Ok(server) => {
            let streams = Tasks::new(ctx.owner()).on(ctx.share());
            run(ctx, (peer, source, local), server, streams, drain, on_request).await;
        }
        Err(reason) => tracing::debug!(pod = %ctx.name(), %source, %reason, "inbound tunnel not started"),
    }
}

/// Serves a tunnel that is set up, in whose `streams` its open ones run, until it ends or is handed over.
pub(crate) async fn run<S, F, Fut>(
    ctx: &PodContext,
    (peer, source, local): (&PeerIdentity, SocketAddr, SocketAddr),
    server: Server<S>,
    streams: Tasks,
    drain: Watch,
    mut on_request: F,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: FnMut(Request) -> Fut,
    Fut: Spawnable + Future<Output = ()>,
{
    let spawn = |request| {
        streams.spawn("inbound stream", on_request(request));
    };
    let (control, thread) = (server.control(), Thread::current());
    let tunnel = AcceptedTunnel { control, peer: peer.clone(), source, local, thread };
    let registered = ctx.open_tunnels().register(tunnel);
    if let Err(reason) = server.serve(drain.clone(), spawn).await {
        tracing::debug!(pod = %ctx.name(), %source, %reason, "inbound tunnel closed with an error");
    }
    drop(registered);
    // Streams that the peer has finished may still have bytes to write to the application.
    tokio::select! {
        () = streams.wait() => {}
        () = drain.forced() => {}
    }
}
