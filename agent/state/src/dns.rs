//! DNS names of services, as a pod's resolver queries them: which service a name means to this client, and its addresses.
//!
//! Only services have names; pods do not. Any other name is left to the cluster's DNS server. It knows nothing of
//! packets.

use std::net::IpAddr;
use std::sync::Arc;

use isthmus_model::{Namespace, NamespacedHostname, Service, Workload};

use crate::balance;
use crate::services::NamespaceScope;
use crate::snapshot::Snapshot;

/// The domains that complete short names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Domains {
    /// The cluster's domain, `cluster.local` unless configured.
    pub cluster: String,
    /// A namespace whose services win when neither the client's namespace nor a canonical service does.
    pub preferred_namespace: Option<Namespace>,
}

/// The address family of a query.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Family {
    /// A records.
    V4,
    /// AAAA records.
    V6,
}

/// The answer to a query.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The name is a service's, and these are its addresses.
    Addresses(ServiceAddresses),
    /// The name is a service's and has no address of this family (NODATA). No other server may be asked.
    Empty,
    /// The name is no service's; the cluster's DNS server may know it.
    NotOurs,
}

/// The addresses of a service by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceAddresses {
    /// The addresses; never empty.
    pub addresses: Vec<IpAddr>,
    /// The name without the search domain, when the query had one: the answer needs a CNAME to it.
    pub canonical: Option<String>,
    /// The service.
    pub service: Arc<Service>,
}

// === impl Domains ===

impl Default for Domains {
    fn default() -> Self {
        Self { cluster: "cluster.local".to_owned(), preferred_namespace: None }
    }
}

// === impl Family ===

impl Family {
    fn is(self, address: IpAddr) -> bool {
        (self == Self::V4) == address.is_ipv4()
    }
}

/// A name to try; `stripped` is the query without its search domain, where it had one.
#[derive(PartialEq, Eq, Debug)]
struct CandidateName {
    name: String,
    stripped: Option<String>,
}

/// Looks up a name (without the final dot, in any case) as the pod `client` means it.
#[must_use]
pub fn lookup(
    snapshot: &Snapshot,
    client: &Workload,
    name: &str,
    family: Family,
    domains: &Domains,
) -> Answer {
    let scope =
        NamespaceScope { client: Some(&client.namespace), preferred: domains.preferred_namespace.as_ref() };
    for candidate in candidates(&name.to_ascii_lowercase(), &client.namespace, &domains.cluster) {
        let Some((service, wildcard)) = find(snapshot, &candidate.name, scope) else { continue };
        let Some(addresses) = addresses(snapshot, client, service, family, &domains.cluster) else {
            return Answer::NotOurs;
        };
        if addresses.is_empty() {
            return Answer::Empty;
        }
        let canonical = candidate.stripped.filter(|_| !wildcard);
        return Answer::Addresses(ServiceAddresses { addresses, canonical, service: Arc::clone(service) });
    }
    Answer::NotOurs
}

/// The service of a name or of the closest wildcard that covers it, and whether it was a wildcard.
fn find<'s>(
    snapshot: &'s Snapshot,
    name: &str,
    scope: NamespaceScope<'_>,
) -> Option<(&'s Arc<Service>, bool)> {
    if let Some(service) = scope.best(snapshot.services.by_hostname(name).iter()) {
        return Some((service, false));
    }
    let mut rest = name;
    while let Some((_, parent)) = rest.split_once('.') {
        let wildcard = format!("*.{parent}");
        if let Some(service) = scope.best(snapshot.services.by_hostname(&wildcard).iter()) {
            return Some((service, true));
        }
        rest = parent;
    }
    None
}

/// The addresses of a service that this client can use. `None` when the service has no virtual address and is not a
/// headless service of the cluster either.
fn addresses(
    snapshot: &Snapshot,
    client: &Workload,
    service: &Service,
    family: Family,
    cluster_domain: &str,
) -> Option<Vec<IpAddr>> {
    let fits = |address: &IpAddr| {
        family.is(*address) && service.ip_families.is_none_or(|families| families.accepts(*address))
    };
    if !service.vips.is_empty() {
        // A virtual address of another network is not routable in the client's.
        let here = service.vips.iter().filter(|vip| vip.network == client.network);
        return Some(here.map(|vip| vip.address).filter(fits).collect());
    }
    let hostname = service.hostname.as_str();
    let in_cluster = hostname.strip_suffix(cluster_domain).is_some_and(|rest| rest.ends_with(".svc."));
    in_cluster.then(|| headless(snapshot, client, service, fits))
}

/// A headless service resolves to one address of each endpoint.
fn headless(
    snapshot: &Snapshot,
    client: &Workload,
    service: &Service,
    fits: impl Fn(&IpAddr) -> bool,
) -> Vec<IpAddr> {
    let key: NamespacedHostname = service.key();
    let filter = balance::health_filter(service);
    snapshot
        .endpoints(&key)
        .filter(|endpoint| endpoint.workload.network == client.network && filter.admits(endpoint.workload))
        .filter_map(|endpoint| endpoint.workload.addresses.iter().copied().find(|address| fits(address)))
        .collect()
}

/// Every name that a query may mean, in order: the name itself, its Kubernetes completions, and both again for the name
/// without a search domain. Without duplicates.
fn candidates(name: &str, namespace: &Namespace, cluster: &str) -> Vec<CandidateName> {
    let mut all: Vec<CandidateName> = Vec::new();
    let mut add = |name: String, stripped: Option<&str>| {
        if all.iter().all(|candidate| candidate.name != name) {
            all.push(CandidateName { name, stripped: stripped.map(str::to_owned) });
        }
    };
    add(name.to_owned(), None);
    completions(name, namespace, cluster).into_iter().for_each(|completed| add(completed, None));
    let search = [format!("{namespace}.svc.{cluster}"), format!("svc.{cluster}"), cluster.to_owned()];
    for domain in &search {
        let Some(stripped) = name.strip_suffix(domain.as_str()).and_then(|rest| rest.strip_suffix('.'))
        else {
            continue;
        };
        if stripped.is_empty() {
            continue;
        }
        add(stripped.to_owned(), Some(stripped));
        let completed = completions(stripped, namespace, cluster);
        completed.into_iter().for_each(|completed| add(completed, Some(stripped)));
    }
    all
}

/// The fully qualified names of a Kubernetes short name.
fn completions(name: &str, namespace: &Namespace, cluster: &str) -> Vec<String> {
    let ends_in_svc = name.ends_with(".svc");
    match name.split('.').count() {
        1 => vec![format!("{name}.{namespace}.svc.{cluster}")],
        2 => vec![format!("{name}.svc.{cluster}"), format!("{name}.{namespace}.svc.{cluster}")],
        3 if ends_in_svc => vec![format!("{name}.{cluster}"), format!("{name}.svc.{cluster}")],
        3 => vec![format!("{name}.svc.{cluster}")],
        4 if ends_in_svc => vec![format!("{name}.{cluster}")],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
