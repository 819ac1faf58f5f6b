//! The rule sets that capture a pod's traffic and let the kubelet's probes through: pure values, and putting them into a
//! namespace. Same tables, chains and rules as istio-cni's, so that either can take over from the other. It must not
//! know which pods get them, and when.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use isthmus_sys::netns::Netns;
use isthmus_sys::nft::{self, Element, Family, Op, SetKind, Statement};
use isthmus_sys::{route, sysctl};

mod host;
mod pod;

pub use host::host_ruleset;
pub use pod::pod_ruleset;

/// The agent's own packets carry this mark under [`MARK_MASK`].
pub const AGENT_MARK: u32 = 0x539;
/// Connections that the agent opened towards the application with the client's address, and their packets.
pub const SPOOFED_MARK: u32 = 0x111;
/// The bits of a mark that are ours.
pub const MARK_MASK: u32 = 0xfff;
/// The routing table that delivers everything to this host.
pub const LOCAL_TABLE: u32 = 100;
/// Where the rule stands that leads to [`LOCAL_TABLE`].
pub const RULE_PREFERENCE: u32 = 32764;
/// What the kubelet's probes come from, as pods see them.
pub const PROBE_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 127);
/// What the kubelet's probes come from, as pods see them.
pub const PROBE_V6: Ipv6Addr = Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff);

const NAT: &str = "istio-ambient-nat";
const MANGLE: &str = "istio-ambient-mangle";
const RAW: &str = "istio-ambient-raw";
const GUARD: &str = "isthmus-guard";

/// What differs between the rules of one pod and another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRules {
    /// Redirect DNS queries to the agent.
    pub dns_capture: bool,
    /// Leave inbound traffic alone: the pod is an ingress.
    pub ingress_mode: bool,
    /// Write rules for IPv6 too.
    pub ipv6: bool,
    /// Interfaces whose inbound traffic is someone's outbound: virtual machines, containers in the pod.
    pub virtual_interfaces: Vec<String>,
    /// What the kubelet's probes come from.
    pub probe_v4: Ipv4Addr,
    /// What the kubelet's probes come from.
    pub probe_v6: Ipv6Addr,
    /// Also drop TCP that leaves the pod and is not the agent's: for as long as it is not proved that redirection works.
    /// The table for it is ours alone and touches no packet that the others handle.
    pub closing: bool,
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
        }
    }
}

/// What differs between the rules of one host and another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRules {
    /// The user that the kubelet runs as: whatever this user sends to a pod of the mesh counts as a probe.
    pub kubelet_uid: u32,
    /// Write rules for IPv6 too.
    pub ipv6: bool,
    /// What probes shall come from.
    pub probe_v4: Ipv4Addr,
    /// What probes shall come from.
    pub probe_v6: Ipv6Addr,
    /// The pods' addresses, each with the pod's UID.
    pub members: Vec<Element>,
}

impl Default for HostRules {
    fn default() -> Self {
        Self { kubelet_uid: 0, ipv6: true, probe_v4: PROBE_V4, probe_v6: PROBE_V6, members: Vec::new() }
    }
}

/// Why rules could not be put in or taken out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// nftables said no.
    #[error(transparent)]
    Nft(#[from] nft::Error),
    /// Routing, or entering the namespace, failed.
    #[error(transparent)]
    Route(#[from] isthmus_sys::Error),
}

/// Makes a pod's namespace be as the rules say, whatever was there before. The routes come first and the packet rules
/// last, in one transaction, so that there is no moment at which half of the capture works.
///
/// # Errors
/// When the kernel refuses; the packet rules are then as before, routes may have been added.
pub fn apply_pod(netns: &Netns, rules: &PodRules) -> Result<(), Error> {
    add_local_routing(netns, false)?;
    if rules.ipv6 && sysctl::read(netns, "net/ipv6/conf/lo/disable_ipv6").is_ok_and(|off| off == "0") {
        add_local_routing(netns, true)?;
    } else {
        del_local_routing(netns, true)?;
    }
    let ruleset = pod_ruleset(rules);
    let gone: Vec<_> = pod_tables().into_iter().filter(|(_, name)| ruleset.table(name).is_none()).collect();
    Ok(nft::replace(netns, &ruleset, &gone)?)
}

/// Takes everything out of a pod's namespace that [`apply_pod`] puts there; none there is success. Goes on when a step
/// fails.
///
/// # Errors
/// The first step that failed.
pub fn remove_pod(netns: &Netns) -> Result<(), Error> {
    let tables = nft::remove(netns, &pod_tables());
    let (v4, v6) = (del_local_routing(netns, false), del_local_routing(netns, true));
    tables?;
    v4?;
    Ok(v6?)
}

/// Makes the host's rules be as given. Addresses that are in the sets already stay there.
///
/// # Errors
/// When the kernel refuses; everything is then as before.
pub fn apply_host(netns: &Netns, rules: &HostRules) -> Result<(), Error> {
    let mut rules = rules.clone();
    for known in host_probes(netns)? {
        if rules.members.iter().all(|member| member.address != known.address) {
            rules.members.push(known);
        }
    }
    Ok(nft::apply(netns, &host_ruleset(&rules))?)
}

/// Takes the host's rules and sets out; none there is success.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_host(netns: &Netns) -> Result<(), Error> {
    Ok(nft::remove(netns, &[(Family::Inet, NAT.to_owned())])?)
}

/// The pods' addresses that probes are rewritten for, each with the pod's UID.
///
/// # Errors
/// When the kernel refuses.
pub fn host_probes(netns: &Netns) -> Result<Vec<Element>, Error> {
    let found = nft::dump(netns)?;
    let sets = found.table(NAT).map(|table| table.sets.clone()).unwrap_or_default();
    Ok(sets
        .into_iter()
        .filter(|set| host::SETS.contains(&set.name.as_str()))
        .flat_map(|set| set.elements)
        .collect())
}

/// Rewrites probes to this address from now on. An entry of the same address is replaced.
///
/// # Errors
/// When the host's rules are not there or the kernel refuses.
pub fn add_host_probe(netns: &Netns, address: IpAddr, pod_uid: &str) -> Result<(), Error> {
    let element = Element { address: address.to_canonical(), comment: Some(pod_uid.to_owned()) };
    Ok(nft::set_element(netns, NAT, host::set_of(element.address), &element)?)
}

/// Rewrites probes to this address no longer; none there is success.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_host_probe(netns: &Netns, address: IpAddr) -> Result<(), Error> {
    let address = address.to_canonical();
    Ok(nft::del_element(netns, NAT, host::set_of(address), address)?)
}

fn pod_tables() -> [(Family, String); 4] {
    [NAT, MANGLE, RAW, GUARD].map(|name| (Family::Inet, name.to_owned()))
}

fn add_local_routing(netns: &Netns, v6: bool) -> Result<(), isthmus_sys::Error> {
    route::add_fwmark_rule(netns, v6, SPOOFED_MARK, MARK_MASK, LOCAL_TABLE, RULE_PREFERENCE)?;
    route::add_local_default(netns, v6, LOCAL_TABLE)
}

fn del_local_routing(netns: &Netns, v6: bool) -> Result<(), isthmus_sys::Error> {
    let rule = route::del_fwmark_rule(netns, v6, SPOOFED_MARK, MARK_MASK, LOCAL_TABLE, RULE_PREFERENCE);
    let routes = route::del_local_default(netns, v6, LOCAL_TABLE);
    rule.and(routes)
}

/// The families that rules are written for, each with the address that probes come from.
fn families(ipv6: bool, v4: Ipv4Addr, v6: Ipv6Addr) -> Vec<(SetKind, IpAddr)> {
    let both = [(SetKind::Ipv4Addr, v4.into()), (SetKind::Ipv6Addr, v6.into())];
    both[..if ipv6 { 2 } else { 1 }].to_vec()
}

fn mark(op: Op, value: u32) -> Statement {
    Statement::Mark { mask: MARK_MASK, op, value }
}
