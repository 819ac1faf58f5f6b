//! The workload manager's metrics, under the field's names.

use std::sync::Arc;

use isthmus_rt::metrics::Registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

/// How many pods are served, and how that came about.
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
            ("workload_manager_active_proxy_count", "Pods that are served", new.active.clone()),
            ("workload_manager_pending_proxy_count", "Pods whose start failed", new.pending.clone()),
        ];
        for (name, help, gauge) in families {
            registry.register(name, help, gauge);
        }
        registry.register("workload_manager_proxies_started", "Pods started", new.started.clone());
        registry.register("workload_manager_proxies_stopped", "Pods stopped", new.stopped.clone());
        Arc::new(new)
    }
}
