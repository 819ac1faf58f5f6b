//! Metrics of the node role, under istio-cni's names.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use isthmus_model::{PodRef, PodUid};
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
    /// Whether each pod of the mesh is captured.
    pub(crate) captured: Family<PodLabels, Gauge>,
    /// The same with the time of the last proof.
    captures: Mutex<BTreeMap<PodUid, CaptureStatus>>,
    /// Requests of the CNI plugin.
    pub(crate) plugin_requests: Family<ResponseCode, Counter>,
}

/// Label of [`Metrics::reconciled`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Type {
    /// `add` (CNI plugin), `update`, `delete` (pod watch) or `namespace` (namespace watch).
    pub(crate) r#type: &'static str,
}

/// Whether a pod of the mesh is captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureStatus {
    /// The pod.
    pub pod: PodRef,
    /// What the last check has shown.
    pub captured: bool,
    /// When it was shown.
    pub proved_at: Option<SystemTime>,
}

/// Labels of [`Metrics::captured`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct PodLabels {
    namespace: String,
    pod: String,
}

impl From<&PodRef> for PodLabels {
    fn from(pod: &PodRef) -> Self {
        Self { namespace: pod.namespace.to_string(), pod: pod.name.to_string() }
    }
}

/// Label of [`Metrics::plugin_requests`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ResponseCode {
    /// HTTP status.
    pub(crate) response_code: u16,
}

impl Metrics {
    /// The pods of the mesh, and whether each is captured.
    #[must_use]
    pub fn captures(&self) -> Vec<CaptureStatus> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PodUid, CaptureStatus>> {
        self.captures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn report_captured(&self, pod: &PodRef, captured: bool) {
        let proved_at = captured.then(SystemTime::now);
        self.lock().insert(pod.uid.clone(), CaptureStatus { pod: pod.clone(), captured, proved_at });
        self.captured.get_or_create(&pod.into()).set(captured.into());
    }

    pub(crate) fn forget_captured(&self, pod: &PodRef) {
        self.lock().remove(&pod.uid);
        self.captured.remove(&pod.into());
    }

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
            "isthmus_pod_captured",
            "1 for a pod of the mesh whose traffic was proved to be captured at the last check, else 0",
            this.captured.clone(),
        );
        registry.register(
            "istio_cni_plugin_requests",
            "Requests of the CNI plugin, by HTTP response code",
            this.plugin_requests.clone(),
        );
        Arc::new(this)
    }
}
