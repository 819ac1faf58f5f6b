//! Virtual addresses for the hosts of ServiceEntries that give none: which entries get some, and which ones. Pure.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::oldest_first;
use crate::clusters::Cluster;
use playground_k8s::manifest::object;

/// Where the addresses come from: a range that is not routed.
const POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(240, 240, 0, 0), 16);

/// What is to be written into the status of one entry.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Allocation {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Of the entry that this was decided for.
    pub(crate) resource_version: String,
    /// `status.addresses`; null takes away what is there.
    pub(crate) addresses: Value,
}

/// Whether hosts of this entry get addresses.
pub(crate) fn are_allocated_for(entry: &Value) -> bool {
    super::resolution(entry) != "NONE"
        && object::list(entry, "/spec/addresses").is_empty()
        && object::label(entry, "networking.istio.io/enable-autoallocate-ip") != Some("false")
}

/// What the status of every entry should be, where it is not. A host keeps the address that it has, unless an older
/// entry has it too; a new one gets an address that follows from its name, so that it is the same in every run.
pub(crate) fn allocate(cluster: &Cluster) -> Vec<Allocation> {
    let entries = oldest_first(cluster);
    let written = entries.iter().flat_map(|entry| object::texts(entry, "/spec/addresses"));
    let mut taken: BTreeSet<Ipv4Addr> = written.filter_map(|text| text.parse().ok()).collect();
    // An address in use is not given to another host, in whatever order the entries come.
    let mut held: BTreeSet<Ipv4Addr> = BTreeSet::new();
    for entry in entries.iter().filter(|entry| are_allocated_for(entry)) {
        held.extend(addresses(entry).map(|(_, address)| address));
    }
    let mut changes = Vec::new();
    for entry in entries {
        let mut wanted = Vec::new();
        for host in hosts(entry) {
            let has = addresses(entry).find(|(of, address)| *of == host && !taken.contains(address));
            let address = has.map(|(_, address)| address).or_else(|| free(entry, host, &taken, &held));
            let Some(address) = address else { continue };
            taken.insert(address);
            wanted.push(json!({"value": address, "host": host}));
        }
        let has = object::list(entry, "/status/addresses");
        if has != wanted {
            changes.push(Allocation {
                namespace: object::namespace(entry).to_owned(),
                name: object::name(entry).to_owned(),
                resource_version: object::text(entry, "/metadata/resourceVersion").to_owned(),
                addresses: if wanted.is_empty() { Value::Null } else { Value::Array(wanted) },
            });
        }
    }
    changes
}

/// The hosts that get an address: a wildcard stands for no one host.
fn hosts(entry: &Value) -> impl Iterator<Item = &str> {
    let gets_some = are_allocated_for(entry);
    object::texts(entry, "/spec/hosts").filter(move |host| gets_some && !host.starts_with('*'))
}

fn addresses(entry: &Value) -> impl Iterator<Item = (&str, Ipv4Addr)> {
    let all = object::list(entry, "/status/addresses").iter();
    all.filter_map(|one| {
        let address = object::text(one, "/value").parse().ok().filter(|address| POOL.contains(address))?;
        Some((object::text(one, "/host"), address))
    })
}

fn free(
    entry: &Value,
    host: &str,
    taken: &BTreeSet<Ipv4Addr>,
    held: &BTreeSet<Ipv4Addr>,
) -> Option<Ipv4Addr> {
    let mut hasher = DefaultHasher::new();
    (object::namespace(entry), object::name(entry), host).hash(&mut hasher);
    // The network's own address and the last one are never allocated.
    let (first, count) = (POOL.network().to_bits() + 1, (1_u64 << (32 - POOL.prefix_len())) - 2);
    let start = hasher.finish() % count;
    let candidates = (0..count).filter_map(|step| u32::try_from((start + step) % count).ok());
    candidates
        .map(|offset| Ipv4Addr::from_bits(first + offset))
        .find(|address| !taken.contains(address) && !held.contains(address))
}
