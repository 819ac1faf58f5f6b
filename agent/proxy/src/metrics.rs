//! The `istio_tcp_*` families and the gauge of open sockets. Owns their names; what a label says is in [`labels`].

pub mod labels;

use std::sync::Arc;

use isthmus_rt::metrics::{Family, Metrics as Registry};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

pub use labels::{Flag, Labels, Party, Reporter};

/// The families of the data plane.
#[derive(Debug, Default)]
pub struct Metrics {
    pub(crate) opened: Family<Labels, Counter>,
    pub(crate) closed: Family<Labels, Counter>,
    pub(crate) failed: Family<Labels, Counter>,
    /// Upstream → downstream, that is towards the client: the field's naming, historic and kept.
    pub(crate) sent: Family<Labels, Counter>,
    /// Downstream → upstream.
    pub(crate) received: Family<Labels, Counter>,
    sockets: Family<SocketLabels, Gauge>,
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
            registry.register(name, help, family.clone());
        }
        registry.register(
            "istio_tcp_sockets_open",
            "Captured sockets that are open",
            metrics.sockets.clone(),
        );
        Arc::new(metrics)
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
}
