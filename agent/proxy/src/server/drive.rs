//! Drives the server side of a tunnel over any proven byte stream: each request in a task of its own.

use std::future::Future;
use std::net::SocketAddr;

use isthmus_hbone::Transport;
use isthmus_hbone::server::{self, Request};
use isthmus_rt::drain::Watch;
use isthmus_rt::task::{Spawnable, Tasks};

use crate::context::PodContext;

/// Drives the server's end of a tunnel, each request in a task of its own, until all of them have ended.
pub(crate) async fn drive<S, F, Fut>(ctx: &PodContext, source: SocketAddr, io: S, drain: Watch, mut each: F)
where
    S: Transport,
    F: FnMut(Request) -> Fut,
    Fut: Spawnable + Future<Output = ()>,
{
    let streams = Tasks::new(ctx.owner()).on(ctx.share());
    let settings = &ctx.proxy().settings;
    let on_request = |request| {
        streams.spawn("inbound stream", each(request));
    };
    if let Err(reason) = server::serve(io, settings, drain.clone(), on_request).await {
        tracing::debug!(pod = %ctx.name(), %source, %reason, "inbound tunnel ended");
    }
    // What was copied to the end may still be on its way to the application.
    tokio::select! {
        () = streams.wait() => {}
        () = drain.forced() => {}
    }
}
