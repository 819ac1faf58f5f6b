//! What tunnels use of the memory budgets, and which pods were refused more: metrics and the log line.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use isthmus_hbone::MemoryBudget;
use isthmus_model::PodRef;
use isthmus_rt::metrics::{Family, Registry};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::time::Instant;

/// How often a pod is logged at most.
const PAUSE: Duration = Duration::from_secs(60);

/// Refusals by pod. A pod has a series once it was refused something, which is rare.
#[derive(Debug, Default)]
pub(super) struct MemoryRefusals(Family<PodLabels, Counter>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PodLabels {
    namespace: String,
    pod: String,
}

/// The budget of the process, as gauges.
#[derive(Debug)]
struct Gauges(MemoryBudget);

impl MemoryRefusals {
    pub(super) fn register(&self, registry: &Registry) {
        registry.register(
            "isthmus_memory_budget_refusals",
            "Windows that were not enlarged, and credit that was withheld, because a memory budget is spent",
            self.0.clone(),
        );
    }

    /// The part of a budget that a pod may use. Its refusals are counted, and logged once a minute.
    pub(super) fn pod_budget(&self, budget: &MemoryBudget, limit: usize, pod: &PodRef) -> MemoryBudget {
        let (family, last) = (self.0.clone(), Mutex::new(None::<Instant>));
        let labels = PodLabels { namespace: pod.namespace.to_string(), pod: pod.name.to_string() };
        budget.observed(limit, move |budget| {
            family.get_or_create(&labels).inc();
            let now = Instant::now();
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|at| now - at < PAUSE) {
                return;
            }
            *last = Some(now);
            let process = budget.parent().map(MemoryBudget::used);
            tracing::warn!(
                namespace = labels.namespace, name = labels.pod, used = budget.used(), limit = budget.limit(),
                used_by_process = process,
                "memory budget of tunnels is spent: peers get no more credit until applications or peers read; \
                 see ISTHMUS_POD_MEMORY_BUDGET"
            );
        })
    }
}

/// Registers gauges of the use and the limit of a process's budget.
pub fn register_memory(registry: &Registry, budget: &MemoryBudget) {
    registry.collect(Gauges(budget.clone()));
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let number = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
        for (name, help, bytes) in [
            (
                "isthmus_memory_budget_used_bytes",
                "Memory that tunnels hold and promise to peers",
                self.0.used(),
            ),
            ("isthmus_memory_budget_limit_bytes", "Memory that tunnels may hold and promise", self.0.limit()),
        ] {
            let gauge = ConstGauge::new(number(bytes));
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_limit_and_the_pod_that_was_refused_are_visible() {
        let (registry, refusals) = (Registry::default(), MemoryRefusals::default());
        refusals.register(&registry);
        let process = MemoryBudget::new(1 << 20);
        register_memory(&registry, &process);
        let pod = PodRef { name: "greedy".into(), namespace: "sample".into(), ..pod() };
        let budget = refusals.pod_budget(&process, 1 << 19, &pod);
        assert!(!registry.encode().unwrap().contains("isthmus_memory_budget_refusals_total{"));
        assert!(!budget.try_use(1 << 20));
        let text = registry.encode().unwrap();
        for line in [
            "isthmus_memory_budget_refusals_total{namespace=\"sample\",pod=\"greedy\"} 1",
            "isthmus_memory_budget_used_bytes 0",
            "isthmus_memory_budget_limit_bytes 1048576",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }

    fn pod() -> PodRef {
        PodRef { uid: "1".into(), name: "a".into(), namespace: "b".into(), service_account: "c".into() }
    }
}
