//! Settings of the node role as plain, validated values. It must not know where they come from: the composition root
//! reads the environment.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use isthmus_model::name::NodeName;
use isthmus_proto::enroll::Rules;

use crate::capture::Uncapturable;

/// Settings of the node role.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node whose pods are enrolled.
    pub node_name: NodeName,
    /// Folder of the CNI plugin's socket, `pluginevent.sock`, and of the records of sandboxes.
    pub run_dir: PathBuf,
    /// Path of the ZDS socket, to which the agents of this node connect.
    pub zds_socket: PathBuf,
    /// Where the container runtime's folder of network namespaces is mounted, for events whose path is not visible here.
    pub netns_dir: PathBuf,
    /// The host's `/proc`.
    pub proc_dir: PathBuf,
    /// The host's network namespace, from which the kubelet sends probes.
    pub host_netns: PathBuf,
    /// Whether DNS queries of pods are redirected to the DNS proxy, unless a pod's annotation overrides it.
    pub dns_capture: bool,
    /// Whether rules are written for IPv6 too.
    pub ipv6: bool,
    /// Which pods are enrolled.
    pub rules: Rules,
    /// Source addresses of the kubelet's probes as pods see them.
    pub probes: ProbeAddresses,
    /// The user whose packets count as the kubelet's.
    pub kubelet: KubeletUid,
    /// What to do with a pod whose traffic cannot be captured.
    pub uncapturable: Uncapturable,
    /// Runtime classes with a network stack of their own; a trailing `*` stands for any end.
    pub own_stack_classes: Vec<String>,
    /// Whether the rules of pods that are already enrolled are rewritten at start.
    pub reconcile_on_start: bool,
}

/// Source addresses that the host's rules give to the kubelet's probes, so that a pod's rules recognise them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeAddresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

/// How the kubelet's user is determined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KubeletUid {
    /// From the running processes; user 0 when no kubelet is among them or it is not clear which is.
    Detect,
    /// This user.
    Fixed(u32),
}

impl Default for ProbeAddresses {
    fn default() -> Self {
        Self { v4: crate::rules::config::PROBE_V4, v6: crate::rules::config::PROBE_V6 }
    }
}
