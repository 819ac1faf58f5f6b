//! The `tokio_*` metrics of a runtime, read at each scrape.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::runtime::{Handle, RuntimeMetrics};

/// The collector of one runtime.
#[derive(Debug)]
pub struct Runtime(Handle);

impl Runtime {
    /// A collector of a running runtime.
    #[must_use]
    pub fn new(handle: Handle) -> Self {
        Self(handle)
    }
}

impl Collector for Runtime {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let now = self.0.metrics();
        let gauges = [
            ("tokio_num_workers", "Worker threads of the data plane", now.num_workers()),
            ("tokio_global_queue_depth", "Tasks in the runtime's global queue", now.global_queue_depth()),
            ("tokio_num_alive_tasks", "Tasks that are alive", now.num_alive_tasks()),
        ];
        for (name, help, value) in gauges {
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder)?;
        }
        let busy = |worker| ConstCounter::new(now.worker_total_busy_duration(worker).as_secs_f64());
        let parks = |worker| ConstCounter::new(now.worker_park_count(worker));
        let unparks = |worker| ConstCounter::new(now.worker_park_unpark_count(worker));
        let help = "Time that a worker thread was busy, in seconds";
        workers(&mut encoder, &now, "tokio_worker_total_busy_duration_seconds", help, busy)?;
        let help = "Times that a worker thread parked for lack of work";
        workers(&mut encoder, &now, "tokio_worker_park_count", help, parks)?;
        let help = "Times that a worker thread parked or unparked";
        workers(&mut encoder, &now, "tokio_worker_park_unpark_count", help, unparks)
    }
}

fn workers<M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    now: &RuntimeMetrics,
    name: &str,
    help: &str,
    value: impl Fn(usize) -> M,
) -> Result<(), fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for worker in 0..now.num_workers() {
        value(worker).encode(family.encode_family(&[("worker", worker.to_string())])?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Registry;

    #[test]
    fn every_worker_is_shown() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        let registry = Registry::default();
        registry.collect(Runtime::new(runtime.handle().clone()));
        let text = registry.encode().unwrap();
        for line in ["tokio_num_workers 2", "tokio_global_queue_depth 0", "tokio_num_alive_tasks 0"] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        for family in [
            "tokio_worker_total_busy_duration_seconds_total",
            "tokio_worker_park_count_total",
            "tokio_worker_park_unpark_count_total",
        ] {
            assert!(text.contains(&format!("{family}{{worker=\"0\"}}")), "{family} is missing in\n{text}");
            assert!(text.contains(&format!("{family}{{worker=\"1\"}}")), "{family} is missing in\n{text}");
        }
    }
}
