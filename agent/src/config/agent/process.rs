//! Settings of the process: how long it drains, whether it hands connections over, and how many threads carry them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::mesh::ProxyConfig;
use crate::config::source::Reader;

/// `CONNECTION_TERMINATION_DEADLINE`; by default the pod's termination grace period less what the shutdown itself takes,
/// so that the process ends before the kubelet kills it. A grace period of 0 means no drain, not an endless one.
pub(super) fn read_drain(r: &mut Reader<'_>) -> Duration {
    let grace: Option<u64> = r.parsed_opt("TERMINATION_GRACE_PERIOD_SECONDS", "a number of seconds");
    let default = Duration::from_secs(match grace {
        None => 5,
        Some(0) => 0,
        Some(n) if n > 10 => n - 5,
        Some(n) => (n - 1).max(1),
    });
    r.duration("CONNECTION_TERMINATION_DEADLINE", default)
}

/// `HANDOVER` and `HANDOVER_UDS`; by default a socket beside that of ZDS, in the folder that the old and the new agent of an
/// upgrade have in common.
pub(super) fn read_handover(r: &mut Reader<'_>, zds: &Path) -> Option<PathBuf> {
    let path = r.text("HANDOVER_UDS").map_or_else(|| zds.with_extension("handover.sock"), PathBuf::from);
    r.flag("HANDOVER", true).then_some(path)
}

/// Threads of the data plane, by ztunnel's rules: `ZTUNNEL_WORKER_THREADS` (a number, a percentage of the cores, or 0 for
/// all), then `concurrency` of the proxy config, then the CPU limit and request of the container. Without any it is a quarter
/// of the cores, where ztunnel has two at least: a connection whose two legs and tunnel share one thread costs a third less
/// than one whose parts wake each other across threads.
pub(super) fn read_threads(r: &mut Reader<'_>, proxy: &ProxyConfig) -> usize {
    let logical = std::thread::available_parallelism().map_or(1, usize::from);
    let limit =
        r.text("ZTUNNEL_RESOURCE_CPU_LIMIT").and_then(|text| cpus(r, "ZTUNNEL_RESOURCE_CPU_LIMIT", &text));
    let request = r
        .text("ZTUNNEL_RESOURCE_CPU_REQUEST")
        .and_then(|text| cpus(r, "ZTUNNEL_RESOURCE_CPU_REQUEST", &text));
    let alternative = r.text("ZTUNNEL_CPU_LIMIT").and_then(|text| cpus(r, "ZTUNNEL_CPU_LIMIT", &text));
    let cores = limit.or(alternative).unwrap_or(logical);
    if let Some(text) = r.text("ZTUNNEL_WORKER_THREADS") {
        return worker_threads(r, &text, cores);
    }
    let chosen = match (proxy.concurrency, limit) {
        (Some(0), _) => cores,
        (Some(n), _) => usize::from(n),
        (None, Some(limit)) => limit.max(request.unwrap_or(0)),
        (None, None) => cores.div_ceil(4).max(request.unwrap_or(0)),
    };
    chosen.max(1)
}

fn worker_threads(r: &mut Reader<'_>, text: &str, cores: usize) -> usize {
    let percent = text.strip_suffix('%').map(str::parse::<usize>);
    let count = match (percent, text.parse::<usize>()) {
        (Some(Ok(percent @ 1..=100)), _) => Some((cores * percent).div_ceil(100)),
        (None, Ok(0)) => Some(cores),
        (None, Ok(count)) => Some(count),
        _ => None,
    };
    count.unwrap_or_else(|| {
        r.fail(format!(
            "ZTUNNEL_WORKER_THREADS={text:?} is neither a number of threads (0: one per core) nor a percentage from 1% to 100%"
        ));
        cores
    })
}

/// `2`, `1.5` or `500m`, rounded up to whole cores.
fn cpus(r: &mut Reader<'_>, key: &str, text: &str) -> Option<usize> {
    let milli = match text.strip_suffix('m') {
        Some(milli) => milli.parse::<u64>().ok(),
        None => {
            let (whole, part) = text.split_once('.').unwrap_or((text, ""));
            let part = format!("{part:0<3}");
            let digits = part.get(..3).filter(|_| part.bytes().all(|b| b.is_ascii_digit()));
            whole
                .parse::<u64>()
                .ok()
                .zip(digits.and_then(|d| d.parse::<u64>().ok()))
                .map(|(w, p)| w * 1000 + p)
        }
    };
    let cores = milli.and_then(|milli| usize::try_from(milli.div_ceil(1000)).ok());
    if cores.is_none() {
        r.fail(format!("{key}={text:?} is not a CPU quantity such as 2, 1.5 or 500m"));
    }
    cores
}
