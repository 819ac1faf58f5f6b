//! Budgets of the memory of tunnels and of the configuration, and the memory that the process may have by its cgroup.

use std::fs;
use std::path::Path;

use crate::config::source::Reader;

const KIB: u64 = 1024;
const MIB: u64 = KIB * KIB;

/// Memory that tunnels may hold and promise, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryConfig {
    /// All of the process (`ISTHMUS_MEMORY_BUDGET`). A quarter of what the container may use, or the machine has; 64 MiB at
    /// least.
    pub process: u64,
    /// Those of one pod (`ISTHMUS_POD_MEMORY_BUDGET`). Half of the process's.
    pub pod: u64,
    /// One tunnel (`ISTHMUS_TUNNEL_MEMORY_BUDGET`). 32 MiB.
    pub tunnel: u64,
}

/// `ISTHMUS_CONFIG_BUDGET`: what the resources of the mesh may cost. A quarter of what the container may use, or the machine
/// has; 64 MiB at least, which is a mesh of 100,000 workloads.
pub(super) fn read_config_budget(r: &mut Reader<'_>) -> u64 {
    budget(r, "ISTHMUS_CONFIG_BUDGET").unwrap_or_else(|| (available() / 4).max(64 * MIB))
}

fn budget(r: &mut Reader<'_>, key: &str) -> Option<u64> {
    let text = r.text(key)?;
    let bytes = quantity(&text).filter(|bytes| *bytes >= MIB);
    if bytes.is_none() {
        r.fail(format!("{key}={text:?} is not a quantity of memory from 1Mi on, such as 64Mi or 1Gi"));
    }
    bytes
}

pub(super) fn read_memory(r: &mut Reader<'_>) -> MemoryConfig {
    let mut budget = |key: &str| budget(r, key);
    let process = budget("ISTHMUS_MEMORY_BUDGET").unwrap_or_else(|| (available() / 4).max(64 * MIB));
    let pod = budget("ISTHMUS_POD_MEMORY_BUDGET").unwrap_or(process / 2);
    let tunnel = budget("ISTHMUS_TUNNEL_MEMORY_BUDGET").unwrap_or(32 * MIB);
    MemoryConfig { process, pod, tunnel }
}

/// A number of bytes, also with the suffix of Kubernetes' binary quantities.
fn quantity(text: &str) -> Option<u64> {
    let (number, unit) = [("Ki", KIB), ("Mi", MIB), ("Gi", KIB * MIB)]
        .into_iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, unit)))
        .unwrap_or((text, 1));
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// What the process may use: the limit of its cgroup, or the memory of the machine.
fn available() -> u64 {
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let groups = read(Path::new("/proc/self/cgroup"));
    let machine = memory_total(&read(Path::new("/proc/meminfo"))).unwrap_or(u64::MAX);
    let limits =
        groups.lines().flat_map(limit_files).filter_map(|path| read(Path::new(&path)).trim().parse().ok());
    limits.chain([machine]).min().unwrap_or(machine)
}

/// The files that limit the memory of a cgroup and of those above it, for a line of `/proc/self/cgroup` (cgroups(7)). A
/// container sees its own cgroup as the root, whatever its path.
fn limit_files(line: &str) -> Vec<String> {
    let mut parts = line.splitn(3, ':');
    let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
        return Vec::new();
    };
    let (root, file) = if controllers.is_empty() {
        ("/sys/fs/cgroup", "memory.max")
    } else if controllers.split(',').any(|controller| controller == "memory") {
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
    } else {
        return Vec::new();
    };
    Path::new(path).ancestors().map(|group| format!("{root}{}/{file}", group.display())).collect()
}

fn memory_total(meminfo: &str) -> Option<u64> {
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    kib?.trim().parse::<u64>().ok()?.checked_mul(KIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_bytes_or_kubernetes_binary_ones() {
        assert_eq!(
            (quantity("7"), quantity("64Mi"), quantity("1Gi")),
            (Some(7), Some(64 * MIB), Some(1024 * MIB))
        );
        assert_eq!((quantity("1G"), quantity("-1"), quantity("")), (None, None, None));
    }

    #[test]
    fn limits_of_a_cgroup_and_of_those_above_it_count() {
        assert_eq!(limit_files("0::/a"), ["/sys/fs/cgroup/a/memory.max", "/sys/fs/cgroup//memory.max"]);
        let file = "/sys/fs/cgroup/memory//memory.limit_in_bytes";
        assert_eq!(limit_files("4:memory:/"), [file]);
        assert!(limit_files("3:cpuset:/").is_empty() && limit_files("").is_empty());
        assert_eq!(memory_total("MemTotal:    2048 kB\nMemFree: 1 kB\n"), Some(2 * MIB));
        assert!(available() >= MIB);
    }
}
