//! Budgets of file descriptors, from the limit of open files.

use crate::config::source::Reader;

/// File descriptors that pods may have open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorConfig {
    /// All pods together (`ISTHMUS_DESCRIPTOR_BUDGET`). What the limit of open files leaves beside the agent's own.
    pub process: u32,
    /// One pod (`ISTHMUS_POD_DESCRIPTOR_BUDGET`). Half of the process's.
    pub pod: u32,
    /// Whether several pods share them. A gateway has all for itself.
    pub shared: bool,
}

/// The least that makes sense: a pod without connections has a few dozen.
const LEAST: u32 = 64;
/// Descriptors of the agent itself, at most: control plane, endpoints, event loops, files.
const OWN: u32 = 4096;

pub(super) fn read_descriptors(r: &mut Reader<'_>) -> DescriptorConfig {
    let limit = isthmus_sys::limits::max_nofile().unwrap_or(1024);
    let process = r.within("ISTHMUS_DESCRIPTOR_BUDGET", LEAST..=u32::MAX).unwrap_or_else(|| for_pods(limit));
    let pod = r
        .within("ISTHMUS_POD_DESCRIPTOR_BUDGET", LEAST..=u32::MAX)
        .unwrap_or_else(|| (process / 2).max(LEAST));
    DescriptorConfig { process, pod, shared: true }
}

/// What a limit of open files leaves for pods: all but an eighth, or [`OWN`].
fn for_pods(limit: u64) -> u32 {
    let limit = u32::try_from(limit).unwrap_or(u32::MAX);
    (limit - (limit / 8).min(OWN)).max(LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_eighth_is_the_agents_own_and_no_more_than_it_needs() {
        let table =
            [(0, LEAST), (1024, 896), (4096, 3584), (1 << 20, (1 << 20) - OWN), (u64::MAX, u32::MAX - OWN)];
        for (limit, pods) in table {
            assert_eq!(for_pods(limit), pods, "{limit}");
        }
    }
}
