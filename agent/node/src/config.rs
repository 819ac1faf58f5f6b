//! What the node role is told by the agent's root: plain values, already checked. Reads no environment and no file.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use isthmus_model::name::NodeName;
use isthmus_proto::enroll::Rules;

/// The configuration of the node role.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node whose pods are enrolled.
    pub node_name: NodeName,
    /// Folder of `pluginevent.sock`.
    pub run_dir: PathBuf,
    /// Path of the ZDS socket, where the data plane of this node connects.
    pub zds_socket: PathBuf,
    /// Where the container runtime keeps the network namespaces of pods; a plugin event must name one in here.
    pub netns_dir: PathBuf,
    /// The host's `/proc`.
    pub proc_dir: PathBuf,
    /// The host's network namespace, where kubelet's probes come from.
    pub host_netns: PathBuf,
    /// Whether pods' DNS queries are captured, unless a pod's annotation says otherwise.
    pub dns_capture: bool,
    /// Whether IPv6 is captured.
    pub ipv6: bool,
    /// Which pods belong to the mesh.
    pub rules: Rules,
    /// The addresses that kubelet's probes are made to come from.
    pub probes: ProbeAddresses,
    /// Whose packets count as kubelet's.
    pub kubelet: KubeletUid,
    /// Whether the rules of pods that are already enrolled are written again at start.
    pub reconcile_on_start: bool,
}

/// The addresses that kubelet's probes are made to come from, one per family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeAddresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

/// How kubelet's user is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KubeletUid {
    /// From the running processes; root's when there is none.
    Detect,
    /// This one.
    Fixed(u32),
}

impl Default for ProbeAddresses {
    fn default() -> Self {
        Self { v4: crate::rules::PROBE_V4, v6: crate::rules::PROBE_V6 }
    }
}
