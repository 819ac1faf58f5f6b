//! The rule sets that redirect a pod's traffic to the agent and let the kubelet's probes through: pure values
//! ([`pod_ruleset`], [`host_ruleset`]), and writing them into a network namespace. Tables, chains and rules are the
//! same as istio-cni's but for what is ours on purpose (connections that are kept apart or left alone), so that either can
//! take over from the other. It must not know which pods get them, and when.

mod apply;
pub mod config;
mod established;
mod host;
mod pod;
mod predecessor;
mod redirected;

pub use apply::{
    Error, Loss, add_host_probe, apply_bridge_guard, apply_host, apply_host_guard, apply_pod, compare_pod,
    host_probes, remove_host, remove_host_probe, remove_pod,
};
pub use config::{
    AGENT_MARK, CANARY_V4, CANARY_V6, EARLIER_MARK, HostRules, LOCAL_TABLE, MARK_MASK, PROBE_V4, PROBE_V6,
    PodRules, RULE_PREFERENCE, SPOOFED_MARK,
};
pub use established::{capture_running, carries, release_pod};
pub use host::{bridge_guard, host_guard, host_ruleset};
pub use pod::pod_ruleset;
pub use predecessor::{remove_predecessors_host, remove_predecessors_pod};
