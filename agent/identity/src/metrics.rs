//! What certificate signing counts.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

/// Counters of the certificate manager.
#[derive(Debug, Default)]
pub struct Metrics {
    signings: Family<Outcome, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

impl Metrics {
    /// Registers the families.
    #[must_use]
    pub fn register(registry: &isthmus_rt::metrics::Metrics) -> Arc<Self> {
        let metrics = Self::default();
        registry.register(
            "isthmus_certificate_signings",
            "Certificate signing requests by result",
            metrics.signings.clone(),
        );
        Arc::new(metrics)
    }

    pub(crate) fn signed(&self, ok: bool) {
        self.signings.get_or_create(&Outcome { result: if ok { "ok" } else { "error" } }).inc();
    }
}
