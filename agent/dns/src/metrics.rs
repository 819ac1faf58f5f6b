//! Metrics of the DNS proxies, with the names and labels of ztunnel's dashboards.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::Workload;
use isthmus_rt::metrics::expiring::{self, Coarse};
use isthmus_rt::metrics::total::Limits;
use isthmus_rt::metrics::{Count, Expiring, Histogram};
use isthmus_rt::task::compute;
use isthmus_state::{Snapshot, State};
use prometheus_client::encoding::EncodeLabelSet;
use tokio::time::Instant;

use crate::query;
use crate::response::Transport;

/// Buckets of the upstream duration, in seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seconds;

impl Limits for Seconds {
    const LIMITS: &'static [f64] = &[0.0005, 0.001, 0.01, 0.1, 1.0, 5.0];
}

const UNKNOWN: &str = "unknown";

/// Metrics of every pod's DNS proxy.
#[derive(Debug, Default)]
pub struct Metrics {
    pub(crate) requests: Expiring<Labels, Count>,
    pub(crate) upstream_requests: Expiring<Labels, Count>,
    pub(crate) upstream_failures: Expiring<Labels, Count>,
    upstream_duration: Expiring<Labels, Histogram<Seconds>>,
}

/// Labels of one query.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(crate) struct Labels {
    request_query_type: String,
    request_protocol: &'static str,
    source_canonical_service: String,
    source_canonical_revision: String,
}

/// The coarse labels that expired series are summed under.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(crate) struct KeptLabels {
    request_query_type: String,
    request_protocol: &'static str,
}

// === impl Metrics ===

impl Metrics {
    /// Registers the families.
    #[must_use]
    pub fn register(registry: &isthmus_rt::metrics::Registry) -> Arc<Self> {
        let metrics = Self::default();
        let Self { requests, upstream_requests, upstream_failures, upstream_duration } = &metrics;
        for (name, help, family) in [
            ("istio_dns_requests", "DNS queries received from pods", requests),
            ("istio_dns_upstream_requests", "DNS queries forwarded to a DNS server", upstream_requests),
            (
                "istio_dns_upstream_failures",
                "Forwarded DNS queries that no DNS server answered",
                upstream_failures,
            ),
        ] {
            registry.register_expiring(name, help, family);
        }
        registry.register_expiring(
            "istio_dns_upstream_request_duration_seconds",
            "Response time of DNS servers for forwarded queries, in seconds",
            upstream_duration,
        );
        Arc::new(metrics)
    }

    /// Expires idle series of services that have no workload any more; returns how many. Takes a while: run it off the
    /// runtime.
    pub fn sweep(&self, now: Instant, mesh: &Snapshot) -> usize {
        let mut present: Option<HashSet<(&str, &str)>> = None;
        let mut gone = |labels: &Labels| {
            let all = || mesh.workloads().map(|workload| service(Some(workload))).collect();
            let of = (labels.source_canonical_service.as_str(), labels.source_canonical_revision.as_str());
            of != service(None) && !present.get_or_insert_with(all).contains(&of)
        };
        let counters = [&self.requests, &self.upstream_requests, &self.upstream_failures];
        let ended: usize = counters.into_iter().map(|family| family.sweep(now, &mut gone)).sum();
        ended + self.upstream_duration.sweep(now, gone)
    }

    /// Sweeps periodically, on the blocking pool.
    pub async fn expire(self: Arc<Self>, state: State) {
        let mut ticks = tokio::time::interval(expiring::INTERVAL);
        loop {
            ticks.tick().await;
            let (metrics, mesh) = (Arc::clone(&self), state.load());
            // A panic was logged by `compute`.
            let _ended = compute("DNS metric series", move || metrics.sweep(Instant::now(), &mesh)).await;
        }
    }

    pub(crate) fn relayed(&self, labels: &Labels, took: Duration) {
        self.upstream_duration.get_or_create(labels).observe(took.as_secs_f64());
    }
}

// === impl Labels ===

impl Labels {
    pub(crate) fn new(message: &[u8], transport: Transport, client: Option<&Workload>) -> Self {
        let (name, revision) = service(client);
        Self {
            request_query_type: query::type_label(message),
            request_protocol: transport.as_str(),
            source_canonical_service: name.to_owned(),
            source_canonical_revision: revision.to_owned(),
        }
    }
}

impl Coarse for Labels {
    type Kept = KeptLabels;

    fn coarse(&self) -> KeptLabels {
        KeptLabels {
            request_query_type: self.request_query_type.clone(),
            request_protocol: self.request_protocol,
        }
    }
}

/// Canonical name and revision as label values.
fn service(workload: Option<&Workload>) -> (&str, &str) {
    let known = |text: &str| !text.is_empty();
    let name = workload.map(|workload| workload.canonical_name.as_str()).filter(|text| known(text));
    let revision = workload.map(|workload| workload.canonical_revision.as_str()).filter(|text| known(text));
    (name.unwrap_or(UNKNOWN), revision.unwrap_or(UNKNOWN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn series_of_removed_services_expire_and_their_sums_stay() {
        let registry = isthmus_rt::metrics::Registry::default();
        let (metrics, state) = (Metrics::register(&registry), State::new(isthmus_state::Options::default()));
        let workload = |name: &str| Workload { canonical_name: name.into(), ..Workload::default() };
        let here = Workload { uid: "here".into(), ..workload("here") };
        state.apply(isthmus_state::Batch { upsert_workloads: vec![here], ..Default::default() });
        for client in [Some(workload("here")), Some(workload("gone")), None] {
            let labels = Labels::new(&[], Transport::Udp, client.as_ref());
            metrics.requests.get_or_create(&labels).inc();
            metrics.relayed(&labels, Duration::from_millis(5));
        }
        metrics.sweep(Instant::now(), &state.load());
        tokio::time::advance(expiring::IDLE).await;
        assert_eq!(metrics.sweep(Instant::now(), &state.load()), 2);
        let text = registry.encode().unwrap();
        let kept = "{request_query_type=\"unknown\",request_protocol=\"udp\"} 1";
        for line in [
            format!("isthmus_expired_dns_requests_total{kept}"),
            format!("isthmus_expired_dns_upstream_request_duration_seconds_count{kept}"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        let live = |line: &&str| line.starts_with("istio_dns_requests_total{");
        assert_eq!(text.lines().filter(live).count(), 2, "{text}");
    }
}
