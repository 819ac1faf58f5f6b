//! What is counted. Names and labels are those that dashboards of the mesh know.

use std::sync::Arc;
use std::time::Duration;

use isthmus_model::Workload;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use crate::answer::Transport;
use crate::query;

/// Seconds.
const BUCKETS: [f64; 6] = [0.0005, 0.001, 0.01, 0.1, 1.0, 5.0];
const UNKNOWN: &str = "unknown";

/// Counters of every pod's DNS proxy.
#[derive(Debug)]
pub struct Metrics {
    pub(crate) requests: Family<Labels, Counter>,
    pub(crate) upstream_requests: Family<Labels, Counter>,
    pub(crate) upstream_failures: Family<Labels, Counter>,
    upstream_duration: Family<Labels, Histogram>,
}

/// Labels of one query.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(crate) struct Labels {
    request_query_type: String,
    request_protocol: &'static str,
    source_canonical_service: String,
    source_canonical_revision: String,
}

// === impl Metrics ===

impl Metrics {
    /// Makes the families and registers them.
    #[must_use]
    pub fn register(registry: &isthmus_rt::metrics::Metrics) -> Arc<Self> {
        let metrics = Self {
            requests: Family::default(),
            upstream_requests: Family::default(),
            upstream_failures: Family::default(),
            upstream_duration: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
        };
        let Self { requests, upstream_requests, upstream_failures, upstream_duration } = &metrics;
        registry.register("istio_dns_requests", "DNS queries of pods", requests.clone());
        registry.register(
            "istio_dns_upstream_requests",
            "DNS queries relayed to the cluster's server",
            upstream_requests.clone(),
        );
        registry.register(
            "istio_dns_upstream_failures",
            "DNS queries that the cluster's server did not answer",
            upstream_failures.clone(),
        );
        registry.register(
            "istio_dns_upstream_request_duration_seconds",
            "How long the cluster's DNS server took",
            upstream_duration.clone(),
        );
        Arc::new(metrics)
    }

    pub(crate) fn relayed(&self, labels: &Labels, took: Duration) {
        self.upstream_duration.get_or_create(labels).observe(took.as_secs_f64());
    }
}

// === impl Labels ===

impl Labels {
    pub(crate) fn new(message: &[u8], transport: Transport, client: Option<&Workload>) -> Self {
        let text = |text: Option<&str>| match text {
            Some(text) if !text.is_empty() => text.to_owned(),
            _ => UNKNOWN.to_owned(),
        };
        Self {
            request_query_type: query::type_label(message),
            request_protocol: transport.as_str(),
            source_canonical_service: text(client.map(|client| client.canonical_name.as_str())),
            source_canonical_revision: text(client.map(|client| client.canonical_revision.as_str())),
        }
    }
}
