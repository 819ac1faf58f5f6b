//! What the xDS client counts.

use std::sync::Arc;

use isthmus_rt::metrics::Family;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

/// Counters of the xDS client, under the names that the dashboards know.
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
    /// No connection or no stream came about.
    ConnectionError,
    /// The stream failed in a way that is not the network's.
    Error,
    /// The connection went away, as it does when the server restarts.
    Reconnect,
    /// The server ended the stream.
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
            "Ends of the xDS stream by reason",
            metrics.terminations.clone(),
        );
        registry.register("istio_xds_message", "xDS responses by type", metrics.messages.clone());
        registry.register("istio_xds_message_bytes", "Bytes of xDS resources by type", metrics.bytes.clone());
        registry.register(
            "isthmus_xds_rejected_resources",
            "Resources that are refused at present by type",
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
