//! Admin, metrics and readiness endpoints of the process: bound before anything else starts, so that a port in use fails
//! the start, and served on the control runtime.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use isthmus_admin::server::{Ready, Routes, Stats, WithStatus, serve};
use isthmus_rt::drain::Watch;
use isthmus_rt::metrics::Registry;
use isthmus_rt::ready::Readiness;
use isthmus_rt::task::Tasks;
use isthmus_sys::socket::{Sockets, Transparent};
use tokio::net::TcpListener;

use super::RunError;

/// A bound HTTP endpoint.
pub(super) struct Endpoint(Vec<TcpListener>);

impl Endpoint {
    /// Binds. The IPv6 wildcard covers both families, where the kernel has both.
    pub(super) async fn bind(what: &str, address: SocketAddr) -> Result<Self, RunError> {
        let bound = if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
            let listener = Sockets::host().listen_wildcard(address.port(), Transparent::Never);
            listener.map(|(listener, _)| listener).map_err(std::io::Error::other)
        } else {
            TcpListener::bind(address).await
        };
        let listener = bound.map_err(RunError::os(format!("{what} endpoint {address}")))?;
        Ok(Self(vec![listener]))
    }

    /// Listens on the same port of the IPv6 loopback address too, if there is one.
    pub(super) async fn with_ipv6_loopback(mut self, port: u16) -> Self {
        match TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await {
            Ok(listener) => self.0.push(listener),
            Err(error) => {
                tracing::debug!(%error, port, "cannot listen on the IPv6 loopback address, the endpoint is IPv4 only")
            }
        }
        self
    }

    /// Serves until the drain.
    pub(super) fn serve(self, routes: impl Routes, tasks: &Tasks, drain: &Watch) {
        let routes: Arc<dyn Routes> = Arc::new(routes);
        for listener in self.0 {
            tasks.spawn("endpoint", serve(listener, Arc::clone(&routes), drain.clone()));
        }
    }
}

/// The metrics and readiness endpoints, which every role has.
pub(super) struct Common {
    stats: Endpoint,
    ready: Endpoint,
}

impl Common {
    /// Binds both.
    pub(super) async fn bind(stats: SocketAddr, ready: SocketAddr) -> Result<Self, RunError> {
        Ok(Self {
            stats: Endpoint::bind("metrics", stats).await?,
            ready: Endpoint::bind("readiness", ready).await?,
        })
    }

    /// Serves both, and a status beside the metrics.
    pub(super) fn serve_with_status(
        self,
        registry: &Registry,
        readiness: &Readiness,
        status: Box<dyn Fn() -> serde_json::Value + Send + Sync>,
        (tasks, drain): (&Tasks, &Watch),
    ) {
        self.stats.serve(WithStatus { inner: Stats::new(registry.clone()), status }, tasks, drain);
        self.ready.serve(Ready(readiness.clone()), tasks, drain);
    }

    /// Serves both.
    pub(super) fn serve(self, registry: &Registry, readiness: &Readiness, tasks: &Tasks, drain: &Watch) {
        self.stats.serve(Stats::new(registry.clone()), tasks, drain);
        self.ready.serve(Ready(readiness.clone()), tasks, drain);
    }
}
