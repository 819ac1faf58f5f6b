//! How many lines failed connections may write: a peer that fails again and again must not push the lines of other
//! connections out of the node's log files, which are rotated by size. What is over the limit is counted, and reported as one line.
//!
//! A value that is given the time; it writes nothing itself.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use tokio::time::Instant;

use crate::types::Direction;

/// Span for which lines are counted.
pub(crate) const WINDOW: Duration = Duration::from_secs(10);
/// Lines of one source that fails in one way, per window.
const PER_SOURCE: u32 = 100;
/// Lines of one pod, over all of its sources, per window.
const PER_POD: u32 = 500;
/// Sources that are told apart; those beyond are one.
const SOURCES: usize = 4096;

/// Connections that fail in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FailureKey {
    pub(crate) direction: Direction,
    /// The pod of this node.
    pub(crate) local: IpAddr,
    pub(crate) source: IpAddr,
    /// The response flag; empty for what failed before it was a connection of the mesh.
    pub(crate) flag: &'static str,
}

/// Failures whose lines were left out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LeftOut {
    pub(crate) key: FailureKey,
    pub(crate) count: u64,
    /// The error of the last one.
    pub(crate) last: String,
}

/// Failures of the current window.
#[derive(Debug, Default)]
pub(crate) struct LineLimits {
    since: Option<Instant>,
    sources: HashMap<FailureKey, Failures>,
    pods: HashMap<IpAddr, u32>,
}

#[derive(Debug, Default)]
struct Failures {
    lines: u32,
    left_out: u64,
    last: String,
}

impl LineLimits {
    /// Whether a failure gets a line of its own. If not it is counted, with its error.
    pub(crate) fn admit(&mut self, key: FailureKey, now: Instant, error: impl FnOnce() -> String) -> bool {
        self.since.get_or_insert(now);
        let key = FailureKey { source: subnet(key.source), ..key };
        let key = if self.sources.len() < SOURCES || self.sources.contains_key(&key) {
            key
        } else {
            FailureKey { source: Ipv6Addr::UNSPECIFIED.into(), ..key }
        };
        let (failures, of_pod) =
            (self.sources.entry(key).or_default(), self.pods.entry(key.local).or_default());
        if failures.lines < PER_SOURCE && *of_pod < PER_POD {
            failures.lines += 1;
            *of_pod += 1;
            return true;
        }
        failures.left_out += 1;
        // The first and then ever fewer: an error costs an allocation.
        if failures.left_out.is_power_of_two() {
            failures.last = error();
        }
        false
    }

    /// When the window ends, if anything was counted in it.
    pub(crate) fn ends_at(&self) -> Option<Instant> {
        self.since.map(|since| since + WINDOW)
    }

    /// Ends the window once it is over: what was left out in it.
    pub(crate) fn end(&mut self, now: Instant) -> Vec<LeftOut> {
        if self.ends_at().is_none_or(|end| now < end) {
            return Vec::new();
        }
        let Self { sources, .. } = std::mem::take(self);
        let left_out = sources.into_iter().filter(|(_, failures)| failures.left_out > 0);
        left_out
            .map(|(key, failures)| LeftOut { key, count: failures.left_out, last: failures.last })
            .collect()
    }
}

/// One client: an IPv4 address, or the network of an IPv6 one, in which it may choose any address.
fn subnet(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(local: u8, source: &str) -> FailureKey {
        let local = IpAddr::from([10, 0, 0, local]);
        FailureKey { direction: Direction::Inbound, local, source: source.parse().unwrap(), flag: "NR" }
    }

    #[test]
    fn a_source_that_fails_again_and_again_gets_a_count() {
        let (mut limits, start) = (LineLimits::default(), Instant::now());
        let flood = key(1, "10.1.0.1");
        let lines = (0..10_000).filter(|at| limits.admit(flood, start, || format!("error {at}"))).count();
        assert_eq!(lines, PER_SOURCE as usize);
        assert!(limits.admit(key(1, "10.1.0.2"), start, String::new), "another source of the same pod");
        assert!(limits.admit(FailureKey { flag: "UF", ..flood }, start, String::new), "another reason");
        assert_eq!(limits.end(start + WINDOW - Duration::from_millis(1)), []);
        let left_out = LeftOut { key: flood, count: 10_000 - 100, last: "error 8291".to_owned() };
        assert_eq!(limits.end(start + WINDOW), [left_out]);
        assert_eq!(limits.ends_at(), None);
        assert!(limits.admit(flood, start + WINDOW, String::new), "the next window");
    }

    #[test]
    fn many_sources_share_what_their_pod_has() {
        let (mut limits, start) = (LineLimits::default(), Instant::now());
        let mut lines = 0;
        for at in 0..100_000_u32 {
            let source = IpAddr::from(at.to_be_bytes()).to_string();
            lines += u32::from(limits.admit(key(1, &source), start, String::new));
        }
        assert_eq!(lines, PER_POD);
        assert!(limits.sources.len() <= SOURCES + 1);
        assert!(limits.admit(key(2, "10.1.0.1"), start, String::new), "a neighbour has its own");
        let left_out: u64 = limits.end(start + WINDOW).iter().map(|left_out| left_out.count).sum();
        assert_eq!(left_out, u64::from(100_000 - PER_POD));
    }

    #[test]
    fn an_ipv6_client_is_its_network() {
        let same = |a: &str, b: &str| subnet(a.parse().unwrap()) == subnet(b.parse().unwrap());
        assert!(same("fd00::1", "fd00::ffff:ffff:ffff:ffff"));
        assert!(!same("fd00::1", "fd00:0:0:1::1"));
        assert!(same("10.0.0.1", "::ffff:10.0.0.1") && !same("10.0.0.1", "10.0.0.2"));
    }
}
