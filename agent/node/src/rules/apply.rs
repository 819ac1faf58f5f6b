//! Writes rule sets into network namespaces and removes them. It must not know which pods get them, and when.

use std::net::IpAddr;

use isthmus_sys::netns::Netns;
use isthmus_sys::nft::{self, Element, Family};
use isthmus_sys::{route, sysctl};

use super::config::{
    GUARD, HostRules, LOCAL_TABLE, MANGLE, MARK_MASK, NAT, PodRules, RAW, RULE_PREFERENCE, SPOOFED_MARK,
};
use super::host::{self, host_ruleset};
use super::pod::pod_ruleset;
use super::redirected;

/// Why rules could not be written or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused an nftables command.
    #[error(transparent)]
    Nft(#[from] nft::Error),
    /// A route or routing rule was refused, or the namespace could not be entered.
    #[error(transparent)]
    Route(#[from] isthmus_sys::Error),
}

/// Writes a pod's rules, replacing those that are there. Routes come first and the packet rules last, in one
/// transaction, so that redirection is never half in place.
///
/// # Errors
/// When the kernel refuses; the packet rules are then as before, routes may have been added.
pub fn apply_pod(netns: &Netns, rules: &PodRules) -> Result<(), Error> {
    add_local_routing(netns, false)?;
    // With IPv6 disabled on `lo` the kernel refuses the local route, and no IPv6 traffic can be redirected anyway.
    if rules.ipv6 && ipv6_enabled(netns) {
        add_local_routing(netns, true)?;
    } else {
        del_local_routing(netns, true)?;
    }
    let ruleset = pod_ruleset(rules);
    let gone: Vec<_> = pod_tables().into_iter().filter(|(_, name)| ruleset.table(name).is_none()).collect();
    Ok(nft::replace(netns, &ruleset, &gone)?)
}

/// What of a pod's rules is not as [`apply_pod`] wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// A table, or something in it.
    Tables,
    /// The routing rule of answers to the agent, or its route.
    Routing,
}

/// Compares what a pod's namespace has with what [`apply_pod`] writes. Tables of others are left out.
///
/// # Errors
/// When the kernel refuses a dump.
pub fn compare_pod(netns: &Netns, rules: &PodRules) -> Result<Option<Loss>, Error> {
    let ours = pod_tables().map(|(_, name)| name);
    let mut found = nft::dump(netns)?;
    found.tables.retain(|table| ours.contains(&table.name));
    if found != pod_ruleset(rules).canonical() {
        return Ok(Some(Loss::Tables));
    }
    let v6 = rules.ipv6 && ipv6_enabled(netns);
    for v6 in if v6 { &[false, true][..] } else { &[false] } {
        let rule = (SPOOFED_MARK, MARK_MASK, LOCAL_TABLE, RULE_PREFERENCE);
        let routed = route::local_routes(netns, *v6, LOCAL_TABLE)?.iter().any(|net| net.prefix_len() == 0);
        if !routed || !route::fwmark_rules(netns, *v6)?.contains(&rule) {
            return Ok(Some(Loss::Routing));
        }
    }
    Ok(None)
}

/// Removes everything that [`apply_pod`] writes into a pod's namespace; success when there is nothing. Continues after
/// a step that fails.
///
/// # Errors
/// The first step that failed.
pub fn remove_pod(netns: &Netns) -> Result<(), Error> {
    let tables = nft::remove(netns, &pod_tables());
    redirected::forget_redirected(netns);
    let (v4, v6) = (del_local_routing(netns, false), del_local_routing(netns, true));
    tables?;
    v4?;
    Ok(v6?)
}

/// Writes the host's rules, replacing those that are there. Addresses that are in the probe sets stay there.
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

/// Writes the host's guard: packets that arrive from the probes' source address, which is the host's own, are dropped.
///
/// # Errors
/// When the kernel refuses.
pub fn apply_host_guard(netns: &Netns, rules: &HostRules) -> Result<(), Error> {
    Ok(nft::apply(netns, &host::host_guard(rules))?)
}

/// Writes the same for frames between the ports of a bridge, which the host's other rules do not see.
///
/// # Errors
/// When the kernel refuses or lacks `nf_tables_bridge`.
pub fn apply_bridge_guard(netns: &Netns, rules: &HostRules) -> Result<(), Error> {
    Ok(nft::apply_to_bridges(netns, &host::bridge_guard(rules))?)
}

/// Removes the host's rules and probe sets; success when there are none.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_host(netns: &Netns) -> Result<(), Error> {
    // A kernel without tables of bridges has none to be removed.
    let _ = nft::remove_from_bridges(netns, &[host::GUARD]);
    Ok(nft::remove(netns, &[NAT, host::GUARD].map(|name| (Family::Inet, name.to_owned())))?)
}

/// The entries of the probe sets: addresses of pods, each with the pod's UID as comment.
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

/// Adds an address to the probe sets, replacing an entry of the same address.
///
/// # Errors
/// When the host's rules are not there or the kernel refuses.
pub fn add_host_probe(netns: &Netns, address: IpAddr, pod_uid: &str) -> Result<(), Error> {
    let element = Element { address: address.to_canonical(), comment: Some(pod_uid.to_owned()) };
    Ok(nft::set_element(netns, NAT, host::set_of(element.address), &element)?)
}

/// Removes an address from the probe sets; success when it is not there.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_host_probe(netns: &Netns, address: IpAddr) -> Result<(), Error> {
    let address = address.to_canonical();
    Ok(nft::del_element(netns, NAT, host::set_of(address), address)?)
}

fn ipv6_enabled(netns: &Netns) -> bool {
    sysctl::read(netns, "net/ipv6/conf/lo/disable_ipv6").is_ok_and(|off| off == "0")
}

pub(super) fn pod_tables() -> [(Family, String); 4] {
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
