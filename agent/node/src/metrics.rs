//! Metrics of the node role, under istio-cni's names.

use std::sync::Arc;

use isthmus_rt::metrics::Family;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

/// Every family of this crate.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Events that queued a pod for reconciliation.
    pub(crate) reconciled: Family<Type, Counter>,
    /// Agents that are connected and registered.
    pub(crate) connected: Gauge,
    /// Requests of the CNI plugin.
    pub(crate) plugin_requests: Family<ResponseCode, Counter>,
}

/// Label of [`Metrics::reconciled`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Type {
    /// `add` (CNI plugin), `update`, `delete` (pod watch) or `namespace` (namespace watch).
    pub(crate) r#type: &'static str,
}

/// Label of [`Metrics::plugin_requests`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ResponseCode {
    /// HTTP status.
    pub(crate) response_code: u16,
}

impl Metrics {
    /// Registers every family.
    #[must_use]
    pub fn register(registry: &isthmus_rt::metrics::Registry) -> Arc<Self> {
        let this = Self::default();
        registry.register(
            "nodeagent_reconcile_events",
            "Events that queued a pod for reconciliation, by type",
            this.reconciled.clone(),
        );
        registry.register(
            "ztunnel_connected",
            "Agents (ztunnels) connected to the ZDS socket",
            this.connected.clone(),
        );
        registry.register(
            "istio_cni_plugin_requests",
            "Requests of the CNI plugin, by HTTP response code",
            this.plugin_requests.clone(),
        );
        Arc::new(this)
    }
}
