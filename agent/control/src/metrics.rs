//! Metrics of the xDS client.

use std::sync::Arc;

use isthmus_rt::metrics::Family;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

/// Metrics of the xDS client; the `istio_…` names are those of ztunnel's dashboards.
#[derive(Debug, Default)]
pub struct Metrics {
    terminations: Family<Termination, Counter>,
    messages: Family<Url, Counter>,
    bytes: Family<Url, Counter>,
    rejected: Family<Url, Gauge>,
}

/// Why a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Reason {
    /// No connection was made, or no stream opened.
    ConnectionError,
    /// The server or the client ended the stream with an error.
    Error,
    /// The connection was lost, as when the server restarts.
    Reconnect,
    /// The server closed the stream.
    Complete,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Termination {
    reason: Reason,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Url {
    url: String,
}

impl Metrics {
    /// Registers the families.
    #[must_use]
    pub fn register(registry: &isthmus_rt::metrics::Registry) -> Arc<Self> {
        let metrics = Self::default();
        registry.register(
            "istio_xds_connection_terminations",
            "xDS streams ended, by reason",
            metrics.terminations.clone(),
        );
        registry.register("istio_xds_message", "xDS responses received, by type", metrics.messages.clone());
        registry.register(
            "istio_xds_message_bytes",
            "Bytes of xDS resources received, by type",
            metrics.bytes.clone(),
        );
        registry.register(
            "isthmus_xds_rejected_resources",
            "xDS resources whose latest version is rejected, by type",
            metrics.rejected.clone(),
        );
        Arc::new(metrics)
    }

    pub(crate) fn ended(&self, reason: Reason) {
        self.terminations.get_or_create(&Termination { reason }).inc();
    }

    pub(crate) fn message(&self, url: &str, bytes: u64) {
        let url = Url { url: url.to_owned() };
        self.messages.get_or_create(&url).inc();
        self.bytes.get_or_create(&url).inc_by(bytes);
    }

    pub(crate) fn rejected(&self, url: &str, count: usize) {
        let url = Url { url: url.to_owned() };
        self.rejected.get_or_create(&url).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
