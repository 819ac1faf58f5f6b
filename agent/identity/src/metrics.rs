//! Metrics of certificate signing.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use isthmus_rt::metrics::Family;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

/// Metrics of the certificate manager.
#[derive(Debug, Default)]
pub struct Metrics {
    signings: Family<ResultLabel, Counter>,
    identities: Family<StateLabel, Gauge>,
    roots_expire: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

impl Metrics {
    /// Registers the metric families.
    #[must_use]
    pub fn register(registry: &isthmus_rt::metrics::Registry) -> Arc<Self> {
        let metrics = Self::default();
        registry.register(
            "isthmus_certificate_signings",
            "Certificate signing requests by result",
            metrics.signings.clone(),
        );
        registry.register(
            "isthmus_certificate_identities",
            "Identities of workloads on this node by the state of their certificate",
            metrics.identities.clone(),
        );
        registry.register(
            "isthmus_mesh_root_expiry_timestamp_seconds",
            "Expiry of the earliest root in the last signed certificate's bundle, seconds since the epoch",
            metrics.roots_expire.clone(),
        );
        Arc::new(metrics)
    }

    /// Sets the number of identities in each state.
    pub(crate) fn identities(&self, counts: [(&'static str, usize); 3]) {
        for (state, count) in counts {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.identities.get_or_create(&StateLabel { state }).set(count);
        }
    }

    pub(crate) fn roots_expire(&self, at: SystemTime) {
        let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.roots_expire.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    pub(crate) fn signed(&self, ok: bool) {
        self.signings.get_or_create(&ResultLabel { result: if ok { "ok" } else { "error" } }).inc();
    }
}
