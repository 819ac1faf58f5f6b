//! The process' own endpoints: bound before anything else starts, served on the control runtime.

use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_admin::server::{Ready, Routes, Stats, serve};
use isthmus_rt::drain::Watch;
use isthmus_rt::metrics::Metrics;
use isthmus_rt::ready::Readiness;
use isthmus_rt::task::Tasks;
use tokio::net::TcpListener;

use super::RunError;

/// A bound endpoint.
pub(super) struct Endpoint(TcpListener);

impl Endpoint {
    /// Binds.
    pub(super) async fn bind(what: &str, address: SocketAddr) -> Result<Self, RunError> {
        let bound = TcpListener::bind(address).await;
        bound.map(Self).map_err(RunError::os(format!("{what} endpoint {address}")))
    }

    /// Serves until the drain.
    pub(super) fn serve(self, routes: impl Routes, tasks: &Tasks, drain: Watch) {
        tasks.spawn("endpoint", serve(self.0, Arc::new(routes), drain));
    }
}

/// Metrics and readiness, which every role has.
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

    /// Serves both.
    pub(super) fn serve(self, registry: &Metrics, readiness: &Readiness, tasks: &Tasks, drain: &Watch) {
        self.stats.serve(Stats(registry.clone()), tasks, drain.clone());
        self.ready.serve(Ready(readiness.clone()), tasks, drain.clone());
    }
}
