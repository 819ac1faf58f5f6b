//! The east-west gateway of a network: terminates outer tunnels and forwards the opaque bytes inside to endpoints of
//! global services; for traffic that is not HBONE, it forwards TLS by server name and plain TCP. It cannot read what it
//! forwards, and authorizes nothing: the endpoint's agent does.
//!
//! It refuses an authority that is an address (400: no client of the mesh sends one to a gateway), and a service that is
//! unknown, not global, or without a healthy HBONE endpoint in this network (503 for all of them, so that a peer cannot
//! probe which services exist). The reference gateway closes the connection instead; its clients treat both as a failure.

mod hbone;
mod hello;
mod sni;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::{Authority, NamespacedHostname, PodRef, TrustDomain, Workload};
use isthmus_rt::drain::Watch;
use isthmus_sys::socket::Sockets;

use crate::accept::{BoundListener, Lifecycle, Placement};
use crate::context::{PodContext, ProxyContext};
use crate::tracker::ConnectionsSnapshot;
use crate::types::Direction;

pub use crate::error::HelloError;

/// Which services may be reached from other networks. Called for each stream, so it must be cheap.
pub trait Globals: Send + Sync {
    /// Whether the service is global. A service that is not known is not.
    fn is_global(&self, service: &NamespacedHostname) -> bool;
}

/// The identity of the gateway.
#[derive(Debug, Clone)]
pub struct GatewayInfo {
    /// Its pod, whose service account is that of its identity.
    pub pod: PodRef,
    /// Its trust domain, which is also that of the peers it accepts.
    pub trust_domain: TrustDomain,
}

/// Where a connection that is not HBONE is forwarded to: an address, or a port of a service. The service need not be
/// global: the operator configured the route on purpose.
pub type Target = Authority;

/// Routes by the server name of a TLS ClientHello.
#[derive(Debug, Clone, Default)]
pub struct SniRoutes {
    /// Targets by server name in lower case.
    pub names: HashMap<String, Target>,
    /// The target for any other server name, and for clients that send none.
    pub otherwise: Option<Target>,
}

/// The listeners of a gateway.
#[derive(Debug, Default)]
pub struct GatewayListeners {
    /// HBONE, usually 15008.
    pub hbone: Option<BoundListener>,
    /// TLS forwarded by its server name: 15443, 15012, 15017.
    pub sni: Vec<(BoundListener, SniRoutes)>,
    /// Plain TCP to one target each.
    pub tcp: Vec<(BoundListener, Target)>,
}

/// A running gateway. Dropping it closes all connections at once.
#[derive(Debug)]
pub struct Gateway {
    ctx: Arc<PodContext>,
    running: Lifecycle,
}

impl SniRoutes {
    /// The target of a connection with this server name.
    #[must_use]
    pub fn target(&self, name: Option<&str>) -> Option<&Target> {
        name.and_then(|name| self.names.get(&name.to_ascii_lowercase())).or(self.otherwise.as_ref())
    }
}

impl Gateway {
    /// Serves until the process drains or [`Self::stop`] is called. Must be called inside the
    /// runtime of the data thread that accepts.
    #[must_use]
    pub fn start(
        proxy: Arc<ProxyContext>,
        info: GatewayInfo,
        listeners: GatewayListeners,
        globals: Arc<dyn Globals>,
        sockets: Sockets,
        drain: Watch,
    ) -> Self {
        let stand_in = stand_in(&proxy, &info);
        let ctx = Arc::new(PodContext::new(proxy, info.pod, sockets, false).with_fallback_workload(stand_in));
        let running = Lifecycle::new(ctx.owner(), ctx.share(), ctx.threads(), drain);
        running.spawn("handshake slots", Arc::clone(&ctx).run_handshake_clock());
        if let Some(bound) = listeners.hbone {
            let mine = Arc::clone(&ctx);
            running.listen(
                bound,
                "gateway hbone",
                Placement::Tunnel,
                ctx.tls_admission(),
                move |accepted, drain| {
                    hbone::accept(Arc::clone(&mine), Arc::clone(&globals), accepted, drain)
                },
            );
        }
        for (bound, routes) in listeners.sni {
            let (mine, routes) = (Arc::clone(&ctx), Arc::new(routes));
            running.listen(
                bound,
                "gateway tls",
                Placement::Here,
                ctx.tls_admission(),
                move |accepted, drain| {
                    sni::serve_tls(Arc::clone(&mine), Arc::clone(&routes), accepted, drain)
                },
            );
        }
        for (bound, target) in listeners.tcp {
            let (mine, target) = (Arc::clone(&ctx), Arc::new(target));
            let beside = Placement::with_tunnels_of(&ctx.owner());
            running.listen(
                bound,
                "gateway tcp",
                beside,
                ctx.admission(Direction::Inbound),
                move |accepted, drain| {
                    sni::serve_tcp(Arc::clone(&mine), Arc::clone(&target), accepted, drain)
                },
            );
        }
        Self { ctx, running }
    }

    /// The open connections. All count as outbound, since none ends here.
    #[must_use]
    pub fn connections(&self) -> ConnectionsSnapshot {
        self.ctx.connections().snapshot()
    }

    /// Drains: accepts no new connections, waits up to `deadline` for the open ones, then closes the rest.
    pub async fn stop(&self, deadline: Duration) {
        self.running.stop(deadline).await;
    }
}

/// The gateway as a workload, for as long as the control plane does not describe it.
fn stand_in(proxy: &ProxyContext, info: &GatewayInfo) -> Workload {
    Workload {
        name: info.pod.name.clone(),
        namespace: info.pod.namespace.clone(),
        service_account: info.pod.service_account.clone(),
        trust_domain: info.trust_domain.clone(),
        network: proxy.network.clone(),
        cluster_id: proxy.cluster_id.clone(),
        workload_name: info.pod.name.clone(),
        canonical_name: info.pod.name.clone(),
        ..Workload::default()
    }
}
