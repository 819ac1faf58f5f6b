//! Metrics of the ZDS client, under the names that ztunnel's workload manager uses.

use std::sync::Arc;

use isthmus_rt::metrics::Registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

/// Every family of this crate.
#[derive(Debug, Default)]
pub struct Metrics {
    pub(crate) active: Gauge,
    pub(crate) pending: Gauge,
    pub(crate) started: Counter,
    pub(crate) stopped: Counter,
}

impl Metrics {
    /// Registers the families.
    #[must_use]
    pub fn register(registry: &Registry) -> Arc<Self> {
        let new = Self::default();
        let families: [(&str, &str, Gauge); 2] = [
            ("workload_manager_active_proxy_count", "Pods that the agent serves", new.active.clone()),
            (
                "workload_manager_pending_proxy_count",
                "Pods whose start failed and is retried",
                new.pending.clone(),
            ),
        ];
        for (name, help, gauge) in families {
            registry.register(name, help, gauge);
        }
        let started = "Pods that the agent has started to serve";
        registry.register("workload_manager_proxies_started", started, new.started.clone());
        let stopped = "Pods that the agent has stopped serving";
        registry.register("workload_manager_proxies_stopped", stopped, new.stopped.clone());
        Arc::new(new)
    }
}
