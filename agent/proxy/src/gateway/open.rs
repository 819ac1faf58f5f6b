//! The open listeners of a gateway, by port. Each has a lifecycle of its own, so that one is closed without touching the
//! connections of the others, and routes that are replaced for new connections only. Does not know where the routes
//! come from.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use isthmus_rt::drain::Watch;

use super::routes::{Backends, SniRoutes};
use super::{Globals, hbone, sni};
use crate::accept::{BoundListener, Lifecycle, Placement};
use crate::context::PodContext;
use crate::types::Direction;

/// What a listener of a gateway carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Traffic {
    /// HBONE, usually on 15008.
    Hbone,
    /// TLS, forwarded by its server name.
    Tls(SniRoutes),
    /// Plain TCP.
    Tcp(Backends),
}

/// The open listeners.
#[derive(Debug, Default)]
pub(super) struct OpenListeners(Mutex<BTreeMap<u16, OpenListener>>);

#[derive(Debug)]
struct OpenListener {
    lifecycle: Lifecycle,
    routes: LiveRoutes,
}

/// The routes that new connections are forwarded by.
#[derive(Debug, Clone)]
enum LiveRoutes {
    Hbone,
    Tls(Arc<ArcSwap<SniRoutes>>),
    Tcp(Arc<ArcSwap<Backends>>),
}

// === impl OpenListeners ===

impl OpenListeners {
    /// Serves a bound listener. One that is open on the port already ends at once.
    pub(super) fn open(
        &self,
        ctx: &Arc<PodContext>,
        globals: &Arc<dyn Globals>,
        (port, bound): (u16, BoundListener),
        traffic: Traffic,
        drain: Watch,
    ) {
        let lifecycle = Lifecycle::new(ctx.owner(), ctx.share(), ctx.threads(), drain);
        let routes = LiveRoutes::from(traffic);
        routes.serve(&lifecycle, ctx, globals, bound);
        self.lock().insert(port, OpenListener { lifecycle, routes });
    }

    /// Replaces the routes of an open listener for new connections. False when the port is not open, or its listener
    /// carries another kind of traffic.
    pub(super) fn reroute(&self, port: u16, traffic: &Traffic) -> bool {
        match (self.lock().get(&port).map(|open| &open.routes), traffic) {
            (Some(LiveRoutes::Hbone), Traffic::Hbone) => {}
            (Some(LiveRoutes::Tls(live)), Traffic::Tls(routes)) => live.store(Arc::new(routes.clone())),
            (Some(LiveRoutes::Tcp(live)), Traffic::Tcp(backends)) => live.store(Arc::new(backends.clone())),
            _ => return false,
        }
        true
    }

    /// Takes a listener out; the future closes it, waits up to `deadline` for its connections, and then ends them.
    pub(super) fn close(&self, port: u16, deadline: Duration) -> Option<impl Future<Output = ()> + use<>> {
        let open = self.lock().remove(&port)?;
        Some(async move { open.lifecycle.stop(deadline).await })
    }

    /// What is open.
    pub(super) fn traffic(&self) -> BTreeMap<u16, Traffic> {
        self.lock().iter().map(|(port, open)| (*port, open.routes.current())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u16, OpenListener>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl LiveRoutes ===

impl From<Traffic> for LiveRoutes {
    fn from(traffic: Traffic) -> Self {
        match traffic {
            Traffic::Hbone => Self::Hbone,
            Traffic::Tls(routes) => Self::Tls(Arc::new(ArcSwap::from_pointee(routes))),
            Traffic::Tcp(backends) => Self::Tcp(Arc::new(ArcSwap::from_pointee(backends))),
        }
    }
}

impl LiveRoutes {
    fn current(&self) -> Traffic {
        match self {
            Self::Hbone => Traffic::Hbone,
            Self::Tls(live) => Traffic::Tls(SniRoutes::clone(&live.load())),
            Self::Tcp(live) => Traffic::Tcp(Backends::clone(&live.load())),
        }
    }

    fn serve(
        &self,
        running: &Lifecycle,
        ctx: &Arc<PodContext>,
        globals: &Arc<dyn Globals>,
        bound: BoundListener,
    ) {
        let (mine, slots) = (Arc::clone(ctx), ctx.tls_admission());
        let globals = Arc::clone(globals);
        match self.clone() {
            Self::Hbone => {
                running.listen(bound, "gateway hbone", Placement::Tunnel, slots, move |accepted, drain| {
                    hbone::accept(Arc::clone(&mine), Arc::clone(&globals), accepted, drain)
                });
            }
            Self::Tls(live) => {
                running.listen(bound, "gateway tls", Placement::Here, slots, move |accepted, drain| {
                    let routes = live.load_full();
                    sni::serve_tls(Arc::clone(&mine), routes, Arc::clone(&globals), accepted, drain)
                });
            }
            Self::Tcp(live) => {
                let beside = Placement::with_tunnels_of(&ctx.owner());
                let admission = ctx.admission(Direction::Inbound);
                running.listen(bound, "gateway tcp", beside, admission, move |accepted, drain| {
                    sni::serve_tcp(Arc::clone(&mine), live.load_full(), accepted, drain)
                });
            }
        }
    }
}
