//! Metrics of the installer, under istio-cni's names.

use isthmus_rt::metrics::{Family, Registry};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

/// Every family of this crate. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pub(crate) installs: Family<Outcome, Counter>,
    pub(crate) ready: Gauge,
}

/// Label of `istio_cni_installs_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Outcome {
    /// `SUCCESS`, or the step that failed.
    pub(crate) result: &'static str,
}

impl Metrics {
    /// Registers every family.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let this = Self::default();
        registry.register(
            "istio_cni_installs",
            "Installations of the CNI plugin, repairs included, by result",
            this.installs.clone(),
        );
        registry.register(
            "istio_cni_install_ready",
            "1 while the CNI plugin is installed, else 0",
            this.ready.clone(),
        );
        this
    }

    pub(crate) fn count(&self, result: &'static str) {
        self.installs.get_or_create(&Outcome { result }).inc();
    }
}
