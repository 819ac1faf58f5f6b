//! Metrics of the process itself, the same for every role.

use isthmus_rt::log::Handle;
use isthmus_rt::metrics::process::Process;
use isthmus_rt::metrics::runtime::Runtime;
use isthmus_rt::metrics::{Family, Registry};
use prometheus_client::metrics::gauge::Gauge;

/// Registers metrics of the log, the file descriptors and the runtimes that do the role's work.
pub(crate) fn process(registry: &Registry, log: &Handle, work: Runtime) {
    log.register(registry);
    registry.collect(Process);
    registry.collect(work);
}

/// Registers `istio_build`, by which dashboards count proxies per release.
pub(crate) fn build(registry: &Registry, tag: String) {
    let family = Family::<Vec<(&'static str, String)>, Gauge>::default();
    family.get_or_create(&vec![("component", "ztunnel".to_owned()), ("tag", tag)]).set(1);
    registry.register("istio_build", "Istio release that this proxy was deployed for", family);
}

#[cfg(test)]
mod tests {
    use isthmus_rt::threads::Threads;

    use super::*;

    #[test]
    fn process_metrics_are_registered() {
        let (threads, _running) = Threads::start("test", 1).unwrap();
        let registry = Registry::default();
        let log = isthmus_rt::log::init(isthmus_rt::log::Format::Text, "off").unwrap();
        process(&registry, &log, Runtime::of_threads(&threads));
        build(&registry, "1.31.0".to_owned());
        let text = registry.encode().unwrap();
        for line in [
            "istio_build{component=\"ztunnel\",tag=\"1.31.0\"} 1",
            "isthmus_log_lines_dropped_total 0",
            "process_open_fds ",
            "process_max_fds ",
            "tokio_num_workers 1",
            "tokio_worker_park_count_total{worker=\"0\"} ",
        ] {
            assert!(text.lines().any(|found| found.starts_with(line)), "{line} is missing in\n{text}");
        }
    }
}
