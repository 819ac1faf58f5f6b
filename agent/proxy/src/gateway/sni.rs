//! Traffic that is not HBONE: TLS routed by its server name, and plain TCP. Both are forwarded like an outbound connection
//! of the gateway's own workload, so an endpoint in the mesh is reached over HBONE, with the gateway's identity.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use isthmus_model::{Authority, Hostname};
use isthmus_rt::drain::Watch;
use isthmus_state::GatewayRefusal;
use isthmus_sys::socket::reset_on_close;

use super::{Backends, Globals, HelloError, SniRoutes, Target, hello};
use crate::accept::Accepted;
use crate::context::PodContext;
use crate::error::Error;
use crate::outbound::{self, Flow};
use crate::server;
use crate::telemetry::access_log;
use crate::types::{Direction, Reporter};

/// Serves one TLS connection to its end.
pub(super) async fn serve_tls(
    ctx: Arc<PodContext>,
    routes: Arc<SniRoutes>,
    globals: Arc<dyn Globals>,
    mut accepted: Accepted,
    drain: Watch,
) {
    let slot = accepted.slot.take();
    serve(&ctx, accepted, drain, async |accepted| {
        // The slot is for reading the ClientHello only.
        let hello = hello::read(&mut accepted.stream, ctx.proxy().config.hello_deadline);
        let read = server::in_slot(&ctx, slot, async { Ok(hello.await?) }).await?;
        let name = read.name.as_deref();
        let address = match (routes.backends(name), routes.auto_passthrough(name)) {
            (None, Some(service)) => global_address(&ctx, &*globals, service)?,
            (backends, _) => {
                let target = backends.and_then(|backends| backends.pick(&mut fastrand::Rng::new()));
                let no_route = || Error::Hello(HelloError::NoRoute(read.name.clone()));
                address(&ctx, target.ok_or_else(no_route)?)?
            }
        };
        Ok((address, read.bytes))
    })
    .await;
}

/// Serves one plain connection to its end.
pub(super) async fn serve_tcp(
    ctx: Arc<PodContext>,
    backends: Arc<Backends>,
    accepted: Accepted,
    drain: Watch,
) {
    serve(&ctx, accepted, drain, async |accepted| {
        let target = backends.pick(&mut fastrand::Rng::new());
        let target = target.ok_or_else(|| Error::NoBackend(accepted.local().port()))?;
        Ok((address(&ctx, target)?, Bytes::new()))
    })
    .await;
}

async fn serve(
    ctx: &PodContext,
    mut accepted: Accepted,
    drain: Watch,
    find: impl AsyncFnOnce(&mut Accepted) -> Result<(SocketAddr, Bytes), Error>,
) {
    let _open = ctx.proxy().metrics.count_socket(Reporter::Gateway);
    let work = async {
        match find(&mut accepted).await {
            Ok((original, first)) => {
                let Accepted { stream, source, .. } = accepted;
                outbound::forward(ctx, Flow { stream, source, original, first }).await;
            }
            Err(error) => {
                reset_on_close(&accepted.stream);
                access_log::failed(
                    &ctx.proxy().metrics,
                    (accepted.source, accepted.local()),
                    Direction::Inbound,
                    &error,
                );
            }
        }
    };
    tokio::select! {
        biased;
        // A record that was started logs the end of its connection when it is dropped.
        () = drain.forced() => {}
        () = work => {}
    }
}

/// The address that a client inside the network would connect to.
fn address(ctx: &PodContext, target: &Target) -> Result<SocketAddr, Error> {
    let (hostname, port) = match target {
        Authority::Ip(address) => return Ok(*address),
        Authority::Host { hostname, port } => (hostname, *port),
    };
    let (snapshot, network) = (ctx.snapshot(), &ctx.proxy().network);
    let service = snapshot
        .service_by_hostname(hostname, port, Some(&ctx.pod().namespace))
        .ok_or_else(|| Error::Gateway(GatewayRefusal::UnknownService(hostname.clone())))?;
    let vip = service.vips.iter().find(|vip| vip.network == *network);
    let vip = vip.ok_or_else(|| Error::NoVip { hostname: hostname.clone(), network: network.clone() })?;
    Ok(SocketAddr::new(vip.address, port))
}

/// The same for a service that a client of another network names: it must be global.
fn global_address(
    ctx: &PodContext,
    globals: &dyn Globals,
    (hostname, port): (Hostname, u16),
) -> Result<SocketAddr, Error> {
    let snapshot = ctx.snapshot();
    let service = snapshot.service_by_hostname(&hostname, port, Some(&ctx.pod().namespace));
    if !service.is_some_and(|service| globals.is_global(&service.key())) {
        return Err(Error::Gateway(GatewayRefusal::NotGlobal(hostname)));
    }
    address(ctx, &Authority::Host { hostname, port })
}
