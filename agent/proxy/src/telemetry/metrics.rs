//! The `istio_tcp_*` families and the gauge of open sockets. Owns their names; what a label says is in [`super::labels`].

use std::sync::Arc;

use isthmus_rt::metrics::{Count, Expiring, Family, Registry, expiring};
use isthmus_rt::task::compute;
use isthmus_state::{Snapshot, State};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::Instant;

use super::labels::Labels;
use super::live_labels::LiveLabels;
use super::retry_metrics::RetryMetrics;
use crate::types::Reporter;

/// The families of the data plane.
#[derive(Debug, Default)]
pub struct Metrics {
    pub(crate) opened: Expiring<Labels, Count>,
    pub(crate) closed: Expiring<Labels, Count>,
    pub(crate) failed: Expiring<Labels, Count>,
    /// Upstream → downstream, that is towards the client: the field's naming, historic and kept.
    pub(crate) sent: Expiring<Labels, Count>,
    /// Downstream → upstream.
    pub(crate) received: Expiring<Labels, Count>,
    sockets: Family<SocketLabels, Gauge>,
    pub(crate) retries: RetryMetrics,
    crl_rejections: Family<SocketLabels, Counter>,
    crl_untracked: Family<SocketLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SocketLabels {
    reporter: &'static str,
}

/// Counts one open socket until dropped.
#[derive(Debug)]
pub(crate) struct OpenSocket(Gauge);

impl Metrics {
    /// Declares the families in the process' registry.
    #[must_use]
    pub fn register(registry: &Registry) -> Arc<Self> {
        let metrics = Self::default();
        let counters = [
            ("istio_tcp_connections_opened", "TCP connections opened", &metrics.opened),
            ("istio_tcp_connections_closed", "TCP connections closed", &metrics.closed),
            ("istio_tcp_connections_failed", "TCP connections that ended with an error", &metrics.failed),
            ("istio_tcp_sent_bytes", "Bytes sent as response, towards the client", &metrics.sent),
            ("istio_tcp_received_bytes", "Bytes received as request, from the client", &metrics.received),
        ];
        for (name, help, family) in counters {
            registry.register_expiring(name, help, family);
        }
        registry.register(
            "istio_tcp_sockets_open",
            "Captured sockets that are open",
            metrics.sockets.clone(),
        );
        metrics.retries.register(registry);
        registry.register(
            "istio_crl_policy_rejections",
            "Peers refused, and connections ended, because of a revocation list",
            metrics.crl_rejections.clone(),
        );
        registry.register(
            "istio_crl_untracked_connections",
            "Connections that a later revocation would not end",
            metrics.crl_untracked.clone(),
        );
        Arc::new(metrics)
    }

    /// Ends the series of workloads and services that are not in the mesh any more, once they were idle for long enough;
    /// how many those were. This computes for a while.
    pub fn sweep(&self, now: Instant, mesh: &Snapshot) -> usize {
        let mut present = LiveLabels::of(mesh);
        let families = [&self.opened, &self.closed, &self.failed, &self.sent, &self.received];
        let ended: usize =
            families.into_iter().map(|family| family.sweep(now, |labels| present.lacks(labels))).sum();
        ended + self.retries.sweep(now, &mut present)
    }

    /// Does so for ever, beside everything else.
    pub async fn expire(self: Arc<Self>, state: State) {
        let mut turns = tokio::time::interval(expiring::INTERVAL);
        loop {
            turns.tick().await;
            let (metrics, mesh) = (Arc::clone(&self), state.load());
            // A panic in there was logged.
            let ended = compute("metric series", move || metrics.sweep(Instant::now(), &mesh)).await;
            if let Some(series @ 1..) = ended {
                tracing::debug!(series, "metric series of what is gone were ended");
            }
        }
    }

    /// Counts a peer that a revocation list refused, or whose connection it ended.
    pub(crate) fn crl_rejected(&self, reporter: Reporter) {
        self.crl_rejections.get_or_create(&SocketLabels { reporter: reporter.as_str() }).inc();
    }

    pub(crate) fn crl_untracked(&self, reporter: Reporter) {
        self.crl_untracked.get_or_create(&SocketLabels { reporter: reporter.as_str() }).inc();
    }

    /// Counts an accepted socket for as long as the guard lives.
    pub(crate) fn socket(&self, reporter: Reporter) -> OpenSocket {
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
    fn the_families_have_the_names_that_dashboards_read() {
        let registry = Registry::default();
        let metrics = Metrics::register(&registry);
        let labels = Labels::default();
        for family in [&metrics.opened, &metrics.closed, &metrics.failed, &metrics.sent, &metrics.received] {
            family.get_or_create(&labels).inc();
        }
        let socket = metrics.socket(Reporter::Source);
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
    async fn series_of_workloads_that_are_gone_end_and_their_sums_stay() {
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
    async fn series_of_names_that_no_workload_has_end() {
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

    /// A peer may call itself what it likes, as often as it likes.
    #[test]
    fn invented_names_do_not_fill_the_memory() {
        let registry = Registry::default();
        let metrics = Metrics::register(&registry);
        let invented = u64::try_from(expiring::LIMIT).unwrap() + 100;
        (0..invented).for_each(|n| metrics.opened.get_or_create(&from(&n.to_string())).inc());
        assert_eq!(metrics.opened.series(), expiring::LIMIT);
        assert_eq!(value(&registry, "isthmus_expired_tcp_connections_opened_total{"), 100);
    }
}
