//! `process_open_fds` and `process_max_fds`, read from `/proc` at each scrape.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

/// The collector.
#[derive(Debug, Clone, Copy)]
pub struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name, help, value: Option<i64>| match value {
            // A value that cannot be read is left out, not shown as 0.
            None => Ok(()),
            Some(value) => {
                let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
                ConstGauge::new(value).encode(encoder)
            }
        };
        gauge("process_open_fds", "Open file descriptors", open_files())?;
        gauge("process_max_fds", "Limit of open file descriptors (RLIMIT_NOFILE, soft)", max_files())
    }
}

/// Open descriptors, without that of the directory being read.
fn open_files() -> Option<i64> {
    let count = std::fs::read_dir("/proc/self/fd").ok()?.count();
    i64::try_from(count.saturating_sub(1)).ok()
}

fn max_files() -> Option<i64> {
    soft_limit(&std::fs::read_to_string("/proc/self/limits").ok()?)
}

fn soft_limit(limits: &str) -> Option<i64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Registry;

    fn value(registry: &Registry, name: &str) -> i64 {
        let text = registry.encode().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap();
        line.parse().unwrap()
    }

    #[test]
    fn descriptors_are_counted_at_the_scrape() {
        let registry = Registry::default();
        registry.collect(Process);
        let before = value(&registry, "process_open_fds");
        // More than concurrent tests of this process open or close.
        let held: Vec<_> = (0..100).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        assert!(value(&registry, "process_open_fds") > before + 50);
        drop(held);
        assert!(value(&registry, "process_max_fds") >= before);
    }

    #[test]
    fn the_limit_is_the_soft_one() {
        assert_eq!(
            soft_limit("Max processes 5 6 processes\nMax open files            1024        4096     files\n"),
            Some(1024)
        );
        assert_eq!(soft_limit("Max open files            unlimited   unlimited     files\n"), None);
    }
}
