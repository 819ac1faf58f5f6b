//! The east-west gateway of a network: terminates outer tunnels and forwards the opaque bytes inside to endpoints of
//! global services; for traffic that is not HBONE, it forwards TLS by server name and plain TCP. It cannot read what it
//! forwards, and authorizes nothing: the endpoint's agent does.
//!
//! It refuses an authority that is an address (400: no client of the mesh sends one to a gateway), and a service that is
//! unknown, not global, or without a healthy HBONE endpoint in this network (503 for all of them, so that a peer cannot
//! probe which services exist). The reference gateway closes the connection instead; its clients treat both as a failure.

mod hbone;
mod hello;
mod open;
mod routes;
mod sni;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::{NamespacedHostname, PodRef, TrustDomain, Workload};
use isthmus_rt::drain::Watch;
use isthmus_rt::task::Tasks;
use isthmus_sys::socket::Sockets;

use self::open::OpenListeners;
use crate::accept::BoundListener;
use crate::context::{PodContext, ProxyContext};
use crate::tracker::ConnectionsSnapshot;

pub use self::open::Traffic;
pub use self::routes::{Backends, SniRoutes, Target};
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

/// The listeners that a gateway starts with.
#[derive(Debug, Default)]
pub struct GatewayListeners {
    /// HBONE, usually 15008.
    pub hbone: Option<BoundListener>,
    /// TLS forwarded by its server name: 15443, 15012, 15017.
    pub sni: Vec<(BoundListener, SniRoutes)>,
    /// Plain TCP.
    pub tcp: Vec<(BoundListener, Backends)>,
}

/// A running gateway. Dropping it closes all connections at once.
pub struct Gateway {
    ctx: Arc<PodContext>,
    globals: Arc<dyn Globals>,
    open: OpenListeners,
    /// Shares out the handshake slots of all listeners.
    _clock: Tasks,
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
        let clock = Tasks::new(ctx.owner()).on(ctx.share());
        clock.spawn("handshake slots", Arc::clone(&ctx).run_handshake_clock());
        let gateway = Self { ctx, globals, open: OpenListeners::default(), _clock: clock };
        let GatewayListeners { hbone, sni, tcp } = listeners;
        let hbone = hbone.into_iter().map(|bound| (bound, Traffic::Hbone));
        let sni = sni.into_iter().map(|(bound, routes)| (bound, Traffic::Tls(routes)));
        let tcp = tcp.into_iter().map(|(bound, backends)| (bound, Traffic::Tcp(backends)));
        for (bound, traffic) in hbone.chain(sni).chain(tcp) {
            gateway.open(bound, traffic, drain.clone());
        }
        gateway
    }

    /// Serves one more listener until the process drains or it is closed. One that is open on its port already, and the
    /// connections of that one, end at once. Must be called inside the runtime of the data thread that accepts.
    pub fn open(&self, bound: BoundListener, traffic: Traffic, drain: Watch) {
        // Fails for a closed socket only.
        let port = bound.local_addr().map_or(0, |address| address.port());
        self.open.open(&self.ctx, &self.globals, (port, bound), traffic, drain);
    }

    /// Replaces the routes of the listener on a port for new connections; those that are open stay where they are. False
    /// when the port is not open, or its listener carries another kind of traffic.
    pub fn reroute(&self, port: u16, traffic: &Traffic) -> bool {
        self.open.reroute(port, traffic)
    }

    /// Takes the listener of a port out. The future closes it, waits up to `deadline` for its connections, and then ends
    /// them; other listeners are not affected. `None` when the port is not open.
    pub fn close(&self, port: u16, deadline: Duration) -> Option<impl Future<Output = ()> + use<>> {
        self.open.close(port, deadline)
    }

    /// What is open, by port.
    #[must_use]
    pub fn listeners(&self) -> BTreeMap<u16, Traffic> {
        self.open.traffic()
    }

    /// The open connections. All count as outbound, since none ends here.
    #[must_use]
    pub fn connections(&self) -> ConnectionsSnapshot {
        self.ctx.connections().snapshot()
    }

    /// Drains: accepts no new connections, waits up to `deadline` for the open ones, then closes the rest.
    pub async fn stop(&self, deadline: Duration) {
        let ports = self.open.traffic().into_keys();
        futures_util::future::join_all(ports.filter_map(|port| self.close(port, deadline))).await;
    }
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("open", &self.open).finish_non_exhaustive()
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
