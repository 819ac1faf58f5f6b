//! The node role's metrics, under the names that dashboards for istio-cni use.

use std::sync::Arc;

use isthmus_rt::metrics::Family;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

/// Every family of this crate.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Reconciled events by kind.
    pub(crate) reconciled: Family<Type, Counter>,
    /// Connected agents.
    pub(crate) connected: Gauge,
    /// Answers to the plugin by status.
    pub(crate) plugin_requests: Family<ResponseCode, Counter>,
}

/// Label of [`Metrics::reconciled`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Type {
    /// `add`, `update` or `delete`.
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
            "The total number of events that were reconciled",
            this.reconciled.clone(),
        );
        registry.register("ztunnel_connected", "Number of connections to ztunnel", this.connected.clone());
        registry.register(
            "istio_cni_plugin_requests",
            "Requests of the CNI plugin by response code",
            this.plugin_requests.clone(),
        );
        Arc::new(this)
    }
}
