//! The `tokio_*` metrics of the runtimes that carry a role's work, read at each scrape. Their threads are numbered through.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::runtime::{Handle, RuntimeMetrics};

use crate::threads::Threads;

/// The collector of some runtimes.
#[derive(Debug)]
pub struct Runtime(Vec<Handle>);

impl Runtime {
    /// A collector of a running runtime.
    #[must_use]
    pub fn new(handle: Handle) -> Self {
        Self(vec![handle])
    }

    /// A collector of the data threads.
    #[must_use]
    pub fn of_threads(threads: &Threads) -> Self {
        Self(threads.iter().map(|thread| threads.handle(thread).clone()).collect())
    }
}

impl Collector for Runtime {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let now: Vec<_> = self.0.iter().map(Handle::metrics).collect();
        let sum = |value: fn(&RuntimeMetrics) -> usize| now.iter().map(value).sum::<usize>();
        let queued = sum(RuntimeMetrics::global_queue_depth);
        let gauges = [
            ("tokio_num_workers", "Worker threads of the data plane", sum(RuntimeMetrics::num_workers)),
            ("tokio_global_queue_depth", "Tasks in the runtimes' global queues", queued),
            ("tokio_num_alive_tasks", "Tasks that are alive", sum(RuntimeMetrics::num_alive_tasks)),
        ];
        for (name, help, value) in gauges {
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder)?;
        }
        let busy = |of: &RuntimeMetrics, worker| {
            ConstCounter::new(of.worker_total_busy_duration(worker).as_secs_f64())
        };
        let parks = |of: &RuntimeMetrics, worker| ConstCounter::new(of.worker_park_count(worker));
        let unparks = |of: &RuntimeMetrics, worker| ConstCounter::new(of.worker_park_unpark_count(worker));
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
    now: &[RuntimeMetrics],
    name: &str,
    help: &str,
    value: impl Fn(&RuntimeMetrics, usize) -> M,
) -> Result<(), fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    let workers = now.iter().flat_map(|of| (0..of.num_workers()).map(move |worker| (of, worker)));
    for (number, (of, worker)) in workers.enumerate() {
        value(of, worker).encode(family.encode_family(&[("worker", number.to_string())])?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Registry;

    #[test]
    fn every_worker_is_shown() {
        let (threads, _running) = Threads::start("test", 2).unwrap();
        let registry = Registry::default();
        registry.collect(Runtime::of_threads(&threads));
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
