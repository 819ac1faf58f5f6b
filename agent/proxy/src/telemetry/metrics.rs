//! Metric families of the data plane: registers them, expires their series and owns their names, which are ztunnel's.
//! Label values are in [`super::labels`].

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use isthmus_hbone::MemoryBudget;
use isthmus_model::PodRef;
use isthmus_rt::descriptors::{DescriptorBudget, DescriptorShare};
use isthmus_rt::metrics::{Count, Expiring, Family, Registry, expiring};
use isthmus_rt::task::compute;
use isthmus_state::{Snapshot, State};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::Instant;

use super::descriptors::DescriptorRefusals;
use super::labels::Labels;
use super::line_limits::{FailureKey, LeftOut, LineLimits};
use super::live_labels::LiveLabels;
use super::memory::MemoryRefusals;
use super::retry_metrics::RetryMetrics;
use crate::types::{Direction, Reporter};

/// Metric families of the data plane.
#[derive(Debug, Default)]
pub struct Metrics {
    pub(crate) opened: Expiring<Labels, Count>,
    pub(crate) closed: Expiring<Labels, Count>,
    pub(crate) failed: Expiring<Labels, Count>,
    /// Upstream to downstream: bytes sent by the server to the client. Counter-intuitive, but ztunnel's naming.
    pub(crate) sent: Expiring<Labels, Count>,
    /// Downstream to upstream: bytes sent by the client to the server.
    pub(crate) received: Expiring<Labels, Count>,
    sockets: Family<SocketLabels, Gauge>,
    pub(crate) retries: RetryMetrics,
    memory: MemoryRefusals,
    descriptors: DescriptorRefusals,
    crl_rejections: Family<SocketLabels, Counter>,
    crl_untracked: Family<SocketLabels, Counter>,
    line_limits: Mutex<LineLimits>,
    lines_left_out: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SocketLabels {
    reporter: &'static str,
}

/// Counts an open socket until dropped.
#[derive(Debug)]
pub(crate) struct OpenSocket(Gauge);

impl Metrics {
    /// Creates the families and registers them.
    #[must_use]
    pub fn register(registry: &Registry) -> Arc<Self> {
        let metrics = Self::default();
        let counters = [
            ("istio_tcp_connections_opened", "TCP connections opened", &metrics.opened),
            ("istio_tcp_connections_closed", "TCP connections closed", &metrics.closed),
            ("istio_tcp_connections_failed", "TCP connections closed with an error", &metrics.failed),
            ("istio_tcp_sent_bytes", "Bytes sent by the server to the client", &metrics.sent),
            ("istio_tcp_received_bytes", "Bytes sent by the client to the server", &metrics.received),
        ];
        for (name, help, family) in counters {
            registry.register_expiring(name, help, family);
        }
        registry.register(
            "istio_tcp_sockets_open",
            "Accepted TCP connections that are open",
            metrics.sockets.clone(),
        );
        metrics.retries.register(registry);
        metrics.memory.register(registry);
        metrics.descriptors.register(registry);
        registry.register(
            "istio_crl_policy_rejections",
            "Handshakes refused and connections closed because the peer's certificate is revoked",
            metrics.crl_rejections.clone(),
        );
        registry.register(
            "istio_crl_untracked_connections",
            "Connections that are not closed when the peer's certificate is revoked later",
            metrics.crl_untracked.clone(),
        );
        registry.register(
            "isthmus_access_log_lines_left_out",
            "Failed connections without a line of their own, since their source failed too often",
            metrics.lines_left_out.clone(),
        );
        Arc::new(metrics)
    }

    /// Expires series that were idle for long enough and name workloads or services that are not in the mesh; returns
    /// their number. CPU-bound: call it on the compute pool.
    pub fn sweep(&self, now: Instant, snapshot: &Snapshot) -> usize {
        let mut live = LiveLabels::new(snapshot);
        let families = [&self.opened, &self.closed, &self.failed, &self.sent, &self.received];
        let expired: usize =
            families.into_iter().map(|family| family.sweep(now, |labels| !live.contains(labels))).sum();
        expired + self.retries.sweep(now, &mut live)
    }

    /// Runs [`Self::sweep`] periodically, on the compute pool. Never returns.
    pub async fn expire(self: Arc<Self>, state: State) {
        let mut interval = tokio::time::interval(expiring::INTERVAL);
        loop {
            interval.tick().await;
            let (metrics, snapshot) = (Arc::clone(&self), state.load());
            // `None` after a panic, which `compute` has logged.
            let expired = compute("metric series", move || metrics.sweep(Instant::now(), &snapshot)).await;
            if let Some(series @ 1..) = expired {
                tracing::debug!(series, "expired metric series of workloads and services that left the mesh");
            }
        }
    }

    /// Whether a failed connection gets a line in the access log. If not it is counted, and reported later.
    pub(crate) fn admits_line(
        &self,
        (src, dst, direction): (SocketAddr, SocketAddr, Direction),
        flag: &'static str,
        error: impl FnOnce() -> String,
    ) -> bool {
        let local = if direction == Direction::Inbound { dst } else { src };
        let key = FailureKey { direction, local: local.ip(), source: src.ip(), flag };
        let mut limits = self.line_limits.lock().unwrap_or_else(PoisonError::into_inner);
        let admitted = limits.admit(key, Instant::now(), error);
        drop(limits);
        if !admitted {
            self.lines_left_out.inc();
        }
        admitted
    }

    /// What was left out in the window, once it is over.
    pub(super) fn left_out(&self, now: Instant) -> Vec<LeftOut> {
        self.line_limits.lock().unwrap_or_else(PoisonError::into_inner).end(now)
    }

    /// Counts a handshake that was refused, or a connection that was closed, because the peer's certificate is revoked.
    pub(crate) fn crl_rejected(&self, reporter: Reporter) {
        self.crl_rejections.get_or_create(&SocketLabels { reporter: reporter.as_str() }).inc();
    }

    /// Counts a connection that cannot be closed on revocation, because its peer's certificate is not tracked.
    pub(crate) fn crl_untracked(&self, reporter: Reporter) {
        self.crl_untracked.get_or_create(&SocketLabels { reporter: reporter.as_str() }).inc();
    }

    /// The share of descriptors of a pod. Its refusals are counted, and logged once a minute.
    pub(crate) fn pod_descriptors(&self, budget: &DescriptorBudget, pod: &PodRef) -> DescriptorShare {
        self.descriptors.pod_share(budget, pod)
    }

    /// The part of a budget that a pod may use, whose refusals are counted.
    pub(crate) fn pod_budget(&self, budget: &MemoryBudget, limit: usize, pod: &PodRef) -> MemoryBudget {
        self.memory.pod_budget(budget, limit, pod)
    }

    /// Counts an accepted connection until the guard is dropped.
    pub(crate) fn count_socket(&self, reporter: Reporter) -> OpenSocket {
        let gauge = self.sockets.get_or_create(&SocketLabels { reporter: reporter.as_str() });
        gauge.inc();
        OpenSocket(gauge)
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Party;

    #[test]
    fn families_have_ztunnels_names() {
        let registry = Registry::default();
        let metrics = Metrics::register(&registry);
        let labels = Labels::default();
        for family in [&metrics.opened, &metrics.closed, &metrics.failed, &metrics.sent, &metrics.received] {
            family.get_or_create(&labels).inc();
        }
        let socket = metrics.count_socket(Reporter::Source);
        let text = registry.encode().unwrap();
        for name in [
            "istio_tcp_connections_opened_total{",
            "istio_tcp_connections_closed_total{",
            "istio_tcp_connections_failed_total{",
            "istio_tcp_sent_bytes_total{",
            "istio_tcp_received_bytes_total{",
            "istio_tcp_sockets_open{reporter=\"source\"} 1",
        ] {
            assert!(text.contains(name), "{name} is missing in\n{text}");
        }
        drop(socket);
        assert!(registry.encode().unwrap().contains("istio_tcp_sockets_open{reporter=\"source\"} 0"));
    }

    fn value(registry: &Registry, series: &str) -> u64 {
        let text = registry.encode().unwrap();
        let lines = text.lines().filter(|line| line.starts_with(series));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    fn from(workload: &str) -> Labels {
        let source =
            Party { workload: workload.into(), namespace: "ns".into(), known: true, ..Party::default() };
        Labels { source, ..Labels::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn idle_series_of_removed_workloads_expire_and_their_sums_remain() {
        let registry = Registry::default();
        let (metrics, state) = (Metrics::register(&registry), State::new(isthmus_state::Options::default()));
        let here = isthmus_model::Workload {
            uid: "here".into(),
            workload_name: "here".into(),
            namespace: "ns".into(),
            ..isthmus_model::Workload::default()
        };
        state.apply(isthmus_state::Batch { upsert_workloads: vec![here], ..Default::default() });
        for workload in ["here", "gone"] {
            metrics.opened.get_or_create(&from(workload)).inc();
            metrics.sent.get_or_create(&from(workload)).inc_by(7);
        }
        let tasks = isthmus_rt::task::Tasks::new("test");
        tasks.spawn("expire", Arc::clone(&metrics).expire(state.clone()));
        tokio::time::sleep(expiring::IDLE - expiring::INTERVAL).await;
        assert_eq!(metrics.opened.series() + metrics.sent.series(), 4);
        tokio::time::sleep(2 * expiring::INTERVAL).await;
        assert_eq!(metrics.opened.series() + metrics.sent.series(), 2);
        let kept = "isthmus_expired_tcp_sent_bytes_total{reporter=\"source\",response_flags=\"-\",";
        assert_eq!(value(&registry, kept), 7);
        assert_eq!(value(&registry, "istio_tcp_sent_bytes_total{"), 7);
        assert_eq!(value(&registry, "isthmus_metric_series{family=\"istio_tcp_sent_bytes\"}"), 1);
        state.apply(isthmus_state::Batch { remove_addresses: vec!["here".to_owned()], ..Default::default() });
        tokio::time::sleep(2 * expiring::INTERVAL).await;
        assert_eq!((metrics.opened.series(), value(&registry, kept)), (0, 14));
    }

    #[tokio::test(start_paused = true)]
    async fn idle_series_of_removed_hostnames_expire() {
        let registry = Registry::default();
        let (metrics, state) = (Metrics::register(&registry), State::new(isthmus_state::Options::default()));
        let named = |name: &str| isthmus_model::Workload {
            uid: name.into(),
            hostname: name.into(),
            ..isthmus_model::Workload::default()
        };
        state.apply(isthmus_state::Batch { upsert_workloads: vec![named("here")], ..Default::default() });
        for name in ["here", "gone"] {
            metrics.retries.on_demand_dns(&named("client"), &name.into());
        }
        metrics.sweep(Instant::now(), &state.load());
        tokio::time::advance(expiring::IDLE).await;
        assert_eq!(metrics.sweep(Instant::now(), &state.load()), 1);
        assert_eq!(value(&registry, "isthmus_expired_on_demand_dns_total{"), 1);
    }

    /// Peers choose their baggage, so a peer can cause any number of label values.
    #[test]
    fn the_number_of_series_is_limited() {
        let registry = Registry::default();
        let metrics = Metrics::register(&registry);
        let names = u64::try_from(expiring::LIMIT).unwrap() + 100;
        (0..names).for_each(|n| metrics.opened.get_or_create(&from(&n.to_string())).inc());
        assert_eq!(metrics.opened.series(), expiring::LIMIT);
        assert_eq!(value(&registry, "isthmus_expired_tcp_connections_opened_total{"), 100);
    }
    #[test]
    fn a_peer_that_makes_up_labels_leaves_room_for_the_others() {
        let registry = Registry::default();
        let metrics = Metrics::register(&registry);
        let of = |peer: &str, workload: &str| {
            let mut labels = from(workload);
            labels.source.principal = Some(format!("spiffe://td/ns/ns/sa/{peer}").parse().unwrap());
            labels
        };
        for n in 0..2 * expiring::LIMIT {
            metrics.opened.get_or_create(&of("evil", &n.to_string())).inc();
        }
        assert!(metrics.opened.series() <= expiring::LIMIT / 3 + 1, "{}", metrics.opened.series());
        for n in 0..1000 {
            metrics.opened.get_or_create(&of("honest", &n.to_string())).inc();
        }
        let honest = registry.encode().unwrap();
        let honest =
            honest.lines().filter(|line| line.contains("source_principal=\"spiffe://td/ns/ns/sa/honest"));
        assert_eq!(honest.count(), 1000);
    }
}
