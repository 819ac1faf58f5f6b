//! What the rule sets are parameterised with: marks, tables, probe addresses, and what differs between pods and hosts.
//! Marks and table names are istio-cni's and ztunnel's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use isthmus_sys::nft::{Element, Op, SetKind, Statement};

/// Mark of the agent's own packets, under [`MARK_MASK`]; the rules leave them alone.
pub const AGENT_MARK: u32 = 0x539;
/// Connection mark of what the agent opens towards the application with the client's address as source; the
/// application's answers are routed back to the agent by it.
pub const SPOOFED_MARK: u32 = 0x111;
/// Connection mark of what was established when its pod was enrolled: it goes on as it began, past redirection and the
/// closing chain.
pub const EARLIER_MARK: u32 = 0x222;
/// The bits of a mark that these rules use; the others belong to network plugins.
pub const MARK_MASK: u32 = 0xfff;
/// Routing table that delivers every packet locally.
pub const LOCAL_TABLE: u32 = 100;
/// Preference of the routing rule that selects [`LOCAL_TABLE`]: before the main table's 32766.
pub const RULE_PREFERENCE: u32 = 32764;
/// Source address of the kubelet's probes as pods see them.
pub const PROBE_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 127);
/// Source address of the kubelet's probes as pods see them.
pub const PROBE_V6: Ipv6Addr = Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff);

/// Destination of outbound canaries and source of inbound ones. Their packets never leave the pod, so no host has the
/// address.
pub const CANARY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 126);
/// Destination of outbound canaries and source of inbound ones.
pub const CANARY_V6: Ipv6Addr = Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xfffe);

pub(super) const NAT: &str = "istio-ambient-nat";
pub(super) const MANGLE: &str = "istio-ambient-mangle";
pub(super) const RAW: &str = "istio-ambient-raw";
pub(super) const GUARD: &str = "isthmus-guard";

/// What differs between the rules of one pod and another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRules {
    /// Redirect DNS queries to the DNS proxy.
    pub dns_capture: bool,
    /// Do not redirect inbound traffic: the pod is an ingress gateway.
    pub ingress_mode: bool,
    /// Write rules for IPv6 too.
    pub ipv6: bool,
    /// Interfaces of virtual machines or containers in the pod: what they send arrives as inbound and is their outbound
    /// traffic.
    pub virtual_interfaces: Vec<String>,
    /// Source address of the kubelet's probes.
    pub probe_v4: Ipv4Addr,
    /// Source address of the kubelet's probes.
    pub probe_v6: Ipv6Addr,
    /// Also drop TCP that leaves the pod and is not the agent's, for as long as it is not proven that redirection
    /// works. The guard table is not istio-cni's, and does not touch packets that the other tables handle.
    pub closing: bool,
    /// Also keep canaries in the pod and from being accepted: the guard table then exists all the time.
    pub canary: bool,
    /// The ports that the kubelet probes; `None`: any.
    pub probe_ports: Option<Vec<u16>>,
}

impl Default for PodRules {
    fn default() -> Self {
        Self {
            dns_capture: true,
            ingress_mode: false,
            ipv6: true,
            virtual_interfaces: Vec::new(),
            probe_v4: PROBE_V4,
            probe_v6: PROBE_V6,
            closing: false,
            canary: false,
            probe_ports: None,
        }
    }
}

/// What differs between the rules of one host and another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRules {
    /// The user that the kubelet runs as: TCP from its sockets to an enrolled pod counts as a probe.
    pub kubelet_uid: u32,
    /// Write rules for IPv6 too.
    pub ipv6: bool,
    /// Source address that probes get.
    pub probe_v4: Ipv4Addr,
    /// Source address that probes get.
    pub probe_v6: Ipv6Addr,
    /// Addresses of the enrolled pods, each with the pod's UID as comment.
    pub members: Vec<Element>,
}

impl Default for HostRules {
    fn default() -> Self {
        Self { kubelet_uid: 0, ipv6: true, probe_v4: PROBE_V4, probe_v6: PROBE_V6, members: Vec::new() }
    }
}

/// The address families that rules are written for, each with the source address of probes.
pub(super) fn families(ipv6: bool, v4: Ipv4Addr, v6: Ipv6Addr) -> Vec<(SetKind, IpAddr)> {
    let both = [(SetKind::Ipv4Addr, v4.into()), (SetKind::Ipv6Addr, v6.into())];
    both[..if ipv6 { 2 } else { 1 }].to_vec()
}

pub(super) fn mark(op: Op, value: u32) -> Statement {
    Statement::Mark { mask: MARK_MASK, op, value }
}
