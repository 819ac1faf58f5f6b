//! Drives the server side of a tunnel over the byte stream of an authenticated peer, and spawns a task per request.
//! Does not know what a request is for.

use std::future::Future;
use std::net::SocketAddr;

use isthmus_hbone::Transport;
use isthmus_hbone::server::{self, Request};
use isthmus_model::SpiffeId;
use isthmus_rt::drain::Watch;
use isthmus_rt::task::{Spawnable, Tasks};

use crate::context::PodContext;
use crate::error::Error;
use crate::telemetry::access_log;
use crate::types::Direction;

/// Serves a tunnel until it is closed and the task of each request has ended, or the drain is forced.
pub(crate) async fn drive<S, F, Fut>(
    ctx: &PodContext,
    (peer, source, local): (&SpiffeId, SocketAddr, SocketAddr),
    io: S,
    drain: Watch,
    mut on_request: F,
) where
    S: Transport,
    F: FnMut(Request) -> Fut,
    Fut: Spawnable + Future<Output = ()>,
{
    let streams = Tasks::new(ctx.owner()).on(ctx.share());
    let settings = match ctx.settings_for(peer, source.ip()) {
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
    let spawn = |request| {
        streams.spawn("inbound stream", on_request(request));
    };
    if let Err(reason) = server::serve(io, &settings, drain.clone(), spawn).await {
        tracing::debug!(pod = %ctx.name(), %source, %reason, "inbound tunnel closed with an error");
    }
    // Streams that the peer has finished may still have bytes to write to the application.
    tokio::select! {
        () = streams.wait() => {}
        () = drain.forced() => {}
    }
}
