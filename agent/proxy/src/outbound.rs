//! 15001: a captured connection of the pod, from its original destination to the other end. Never falls back from HBONE
//! to plaintext, and sends no byte of the application before the far end said yes.

mod double;
mod flow;
mod hbone;
mod linger;
mod tcp;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use isthmus_model::Workload;
use isthmus_rt::drain::Watch;
use isthmus_state::resolve;
use isthmus_state::route::{Resolved, Route};
use isthmus_sys::socket::reset_on_close;

use crate::access_log;
use crate::error::Error;
use crate::listener::Accepted;
use crate::metrics::Reporter;
use crate::record::Direction;
use crate::scope::Scope;

pub(crate) use flow::{Flow, Way};

/// Serves one captured connection to its end.
pub(crate) async fn serve(scope: Arc<Scope>, accepted: Accepted, drain: Watch) {
    let _open = scope.world().metrics.socket(Reporter::Source);
    scope.sockets().accepted(&accepted.stream);
    let flow = Flow {
        stream: accepted.stream,
        source: accepted.source,
        original: accepted.original,
        first: Bytes::new(),
    };
    tokio::select! {
        biased;
        // What was opened logs its end when it is dropped.
        () = drain.forced() => {}
        () = forward(&scope, flow) => {}
    }
}

/// Sends one connection where the mesh's state says, and logs how it ended.
pub(crate) async fn forward(scope: &Scope, flow: Flow) {
    let (source, original) = (flow.source, flow.original);
    // Boxed so that a connection which only copies does not carry the room that its beginning needed.
    match Box::pin(route(scope, original)).await {
        Ok((workload, resolved)) => send(scope, flow, workload, resolved).await,
        Err(error) => {
            reset_on_close(&flow.stream);
            access_log::early(source, original, Direction::Outbound, &error);
        }
    }
}

/// Decides where a connection goes. Steps 1 to 8 of the reference's decision tree.
async fn route(scope: &Scope, original: SocketAddr) -> Result<(Arc<Workload>, Resolved), Error> {
    let config = &scope.world().config;
    let illegal = config.is_illegal(original.port());
    if illegal && original.ip().is_loopback() {
        return Err(Error::Recursive(original));
    }
    let workload = scope.workload().await?;
    if illegal && workload.addresses.contains(&original.ip()) {
        return Err(Error::Recursive(original));
    }
    let snapshot = scope.snapshot();
    let resolved = resolve(&snapshot, &workload, original, &scope.world().network, &mut fastrand::Rng::new());
    log_route(scope, original, &resolved);
    Ok((workload, resolved))
}

fn log_route(scope: &Scope, original: SocketAddr, resolved: &Resolved) {
    let (route, upstream) = match &resolved.route {
        Route::Passthrough { to } => ("passthrough", Some(*to)),
        Route::Tcp(upstream) => ("tcp", Some(upstream.tcp_to)),
        Route::Hbone(upstream) => ("hbone", Some(upstream.tcp_to)),
        Route::DoubleHbone(upstream) => ("double hbone", Some(upstream.tcp_to)),
        Route::Deny(_) => ("deny", None),
    };
    tracing::debug!(
        pod = %scope.name(),
        dst = %original,
        route,
        upstream = upstream.map(tracing::field::display),
        workload = resolved.destination.workload.as_ref().map(|workload| workload.uid.as_str()),
        reason = resolved.reason.as_str(),
        "resolved"
    );
}

async fn send(scope: &Scope, flow: Flow, workload: Arc<Workload>, resolved: Resolved) {
    let Resolved { route, destination, .. } = resolved;
    let way = Way { scope, workload, destination };
    match route {
        Route::Deny(reason) => {
            let error = Error::Unroutable(reason);
            reset_on_close(&flow.stream);
            access_log::early(flow.source, flow.original, Direction::Outbound, &error);
        }
        Route::Passthrough { to } => tcp::send(&way, flow, to).await,
        Route::Tcp(upstream) => tcp::send(&way, flow, upstream.tcp_to).await,
        Route::Hbone(upstream) => hbone::send(&way, flow, &upstream).await,
        Route::DoubleHbone(upstream) => double::send(&way, flow, &upstream).await,
    }
}
