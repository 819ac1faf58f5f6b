//! What pods hold of the process's descriptors, and which were refused more: metrics and the log line.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use isthmus_model::PodRef;
use isthmus_rt::descriptors::{DescriptorBudget, DescriptorShare};
use isthmus_rt::metrics::{Family, Registry};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::time::Instant;

/// How often a pod is logged at most.
const PAUSE: Duration = Duration::from_secs(60);

/// Refusals by pod. A pod has a series once it was refused a connection, which is rare.
#[derive(Debug, Default)]
pub(super) struct DescriptorRefusals(Family<PodLabels, Counter>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PodLabels {
    namespace: String,
    pod: String,
}

/// The budget of the process.
#[derive(Debug)]
struct Use(DescriptorBudget);

impl DescriptorRefusals {
    pub(super) fn register(&self, registry: &Registry) {
        registry.register(
            "isthmus_descriptor_budget_refusals",
            "Connections that were refused because the pod holds its share of file descriptors",
            self.0.clone(),
        );
    }

    /// The share of a pod. Its refusals are counted, and logged once a minute.
    pub(super) fn pod_share(&self, budget: &DescriptorBudget, pod: &PodRef) -> DescriptorShare {
        let (family, last) = (self.0.clone(), Mutex::new(None::<Instant>));
        let labels = PodLabels { namespace: pod.namespace.to_string(), pod: pod.name.to_string() };
        budget.share(move |share| {
            family.get_or_create(&labels).inc();
            let now = Instant::now();
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|at| now - at < PAUSE) {
                return;
            }
            *last = Some(now);
            let process = share.process();
            tracing::warn!(
                namespace = labels.namespace, name = labels.pod, used = share.used(),
                used_by_process = process.used(), limit_of_process = process.limit(),
                "the pod holds its share of file descriptors: its further connections are reset until others end; \
                 see ISTHMUS_POD_DESCRIPTOR_BUDGET and the limit of open files (RLIMIT_NOFILE)"
            );
        })
    }
}

/// Registers the use, the limit and the exhaustions of a process's budget.
pub fn register_descriptors(registry: &Registry, budget: &DescriptorBudget) {
    registry.collect(Use(budget.clone()));
}

impl Collector for Use {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for (name, help, count) in [
            ("isthmus_descriptor_budget_used", "File descriptors that are open for pods", self.0.used()),
            ("isthmus_descriptor_budget_limit", "File descriptors that may be open for pods", self.0.limit()),
        ] {
            let gauge = ConstGauge::new(number(count));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let exhaustions = ConstCounter::new(self.0.exhaustions());
        exhaustions.encode(encoder.encode_descriptor(
            "isthmus_descriptor_budget_exhaustions",
            "Connections for which the process had no file descriptor though their pod holds few",
            None,
            exhaustions.metric_type(),
        )?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_limit_and_the_pod_that_was_refused_are_visible() {
        let (registry, refusals) = (Registry::default(), DescriptorRefusals::default());
        refusals.register(&registry);
        let process = DescriptorBudget::new(100, 2);
        register_descriptors(&registry, &process);
        let pod = PodRef {
            uid: "1".into(),
            name: "greedy".into(),
            namespace: "sample".into(),
            service_account: "c".into(),
        };
        let share = refusals.pod_share(&process, &pod);
        let _held = (share.acquire().unwrap(), share.acquire().unwrap());
        assert!(!registry.encode().unwrap().contains("isthmus_descriptor_budget_refusals_total{"));
        assert!(share.acquire().is_none());
        let text = registry.encode().unwrap();
        for line in [
            "isthmus_descriptor_budget_refusals_total{namespace=\"sample\",pod=\"greedy\"} 1",
            "isthmus_descriptor_budget_used 2",
            "isthmus_descriptor_budget_limit 100",
            "isthmus_descriptor_budget_exhaustions_total 0",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
