//! What the agents of one cluster are told: the workloads of their own network, the services of their own cluster and
//! the global ones, the ways into other networks, and the policies. Pure: objects in, resources out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use isthmus_proto::discovery::Resource;
use isthmus_proto::workload::{Service, Workload};
use serde_json::Value;

use crate::clusters::{Cluster, ClusterId, Clusters};
use crate::translate::authorization;
use crate::translate::gateway::{self, NetworkGateway};
use crate::translate::mesh_config::{Mesh, Scope};
use crate::translate::peer_authentication::PeerAuthentications;
use crate::translate::resource;
use crate::translate::service::{self, MeshService};
use crate::translate::service_entry;
use crate::translate::waypoint::Waypoints;
use crate::translate::workload::{self, ClusterContext, Entries};
use playground_k8s::manifest::object;

/// The resources for the agents of one cluster, by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// Workloads and services.
    pub(crate) addresses: Resources,
    /// Policies.
    pub(crate) policies: Resources,
}

/// Resources of one type.
#[derive(Debug, Clone, Default)]
pub(crate) struct Resources {
    by_name: BTreeMap<String, Arc<Resource>>,
    /// Names by alias: one address may be that of several.
    aliases: BTreeMap<String, BTreeSet<String>>,
    /// Names by another that brings them along: the workloads of a service, and of a node.
    groups: BTreeMap<Group, BTreeSet<String>>,
}

/// What several workloads have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Group {
    /// They stand behind a service, by its name.
    Service(String),
    /// They run on a node.
    Node(String),
}

/// One cluster, translated by itself.
struct TranslatedCluster<'a> {
    id: &'a ClusterId,
    network: &'a str,
    cluster: &'a Cluster,
    services: BTreeMap<String, MeshService<'a>>,
    workloads: Vec<Workload>,
}

/// What every cluster's agents are told. `config` is the cluster whose policies and entries count, `own` its
/// network when its root namespace does not say.
pub(crate) fn all(
    mesh: &Mesh,
    clusters: &Clusters,
    config: &ClusterId,
    own: &str,
) -> BTreeMap<ClusterId, View> {
    let Some(config_cluster) = clusters.cluster(config) else {
        return BTreeMap::new();
    };
    let policies = Policies::read(config_cluster, mesh);
    let entries = Entries { id: config, cluster: config_cluster };
    let clusters: Vec<TranslatedCluster<'_>> = clusters
        .iter()
        .map(|(id, cluster)| {
            let default = if id == config { own } else { "" };
            let network = workload::network(cluster, &mesh.root_namespace).unwrap_or(default);
            let waypoints = Waypoints::new(cluster, network);
            let services = services(mesh, entries, cluster, network, &waypoints);
            let context =
                ClusterContext { id, cluster, network, services: &services, waypoints: &waypoints, entries };
            let policies_for = |pod: &Value| policies.names_for(pod, &mesh.root_namespace);
            let mut workloads = workload::all(mesh, context, &policies_for);
            workloads.extend(service_entry::workloads(mesh, context, &policies_for));
            TranslatedCluster { id, network, cluster, services, workloads }
        })
        .collect();
    let view = |own: &TranslatedCluster<'_>| {
        let mut view = build(mesh, own, &clusters);
        for policy in &policies.resources {
            view.policies.add(resource::policy(policy), []);
        }
        (own.id.clone(), view)
    };
    clusters.iter().map(view).collect()
}

/// The services of one cluster by itself. Where a ServiceEntry has the name of a service of Kubernetes, in its own
/// namespace or elsewhere, that one is what the name means.
fn services<'a>(
    mesh: &Mesh,
    entries: Entries<'a>,
    cluster: &'a Cluster,
    network: &str,
    waypoints: &Waypoints<'_>,
) -> BTreeMap<String, MeshService<'a>> {
    let mut services = service::all(mesh, cluster, network, waypoints);
    let names: BTreeSet<String> = services.values().map(|known| known.resource.hostname.clone()).collect();
    for (key, mut known) in service_entry::services(entries.cluster, network, waypoints) {
        known.resource.canonical &= !names.contains(&known.resource.hostname);
        services.entry(key).or_insert(known);
    }
    services
}

fn build(mesh: &Mesh, own: &TranslatedCluster<'_>, clusters: &[TranslatedCluster<'_>]) -> View {
    let services = merged(mesh, own, clusters);
    let mut view = View::default();
    for service in services.values().map(|(service, _)| service) {
        view.addresses.add_service(service);
    }
    let gateways = gateways(own, clusters);
    for cluster in clusters.iter().filter(|cluster| cluster.network == own.network) {
        for workload in &cluster.workloads {
            let mut workload = workload.clone();
            if workload.network != own.network {
                // Only an entry can say that its workload is elsewhere.
                let gateway = gateways.get(&workload.network).and_then(|gateways| gateways.first());
                workload.network_gateway = gateway.map(NetworkGateway::address);
            }
            // A service of another cluster that is not global does not exist here.
            workload.services.retain(|key, _| {
                services.contains_key(key) && (cluster.id == own.id || cluster.is_global(key))
            });
            view.addresses.add_workload(&workload);
        }
    }
    for gateway in gateways.values().flatten() {
        view.addresses.add_workload(&gateway.workload(mesh));
    }
    for (network, gateways) in &gateways {
        let Some(gateway) = gateways.first() else {
            continue;
        };
        for (key, (service, _)) in services.iter().filter(|(_, (_, scope))| *scope == Scope::Global) {
            let capacity: u32 =
                remote_workloads(key, network, clusters).map(|one| one.capacity.unwrap_or(1).max(1)).sum();
            if capacity > 0 {
                view.addresses.add_workload(&gateway.split_horizon(mesh, service, capacity));
            }
        }
    }
    view
}

/// The services that a cluster knows: its own, and the global ones of all, merged.
fn merged(
    mesh: &Mesh,
    own: &TranslatedCluster<'_>,
    clusters: &[TranslatedCluster<'_>],
) -> BTreeMap<String, (Service, Scope)> {
    let mut services: BTreeMap<String, (Service, Scope)> = own
        .services
        .iter()
        .map(|(key, known)| (key.clone(), (known.resource.clone(), known.scope)))
        .collect();
    for cluster in clusters.iter().filter(|cluster| cluster.id != own.id) {
        for (key, known) in cluster.services.iter().filter(|(_, known)| known.scope == Scope::Global) {
            match services.get_mut(key) {
                None => _ = services.insert(key.clone(), (known.resource.clone(), Scope::Global)),
                Some((service, Scope::Global)) => {
                    if ports(service) != ports(&known.resource) {
                        let cluster = &cluster.id;
                        tracing::warn!(service = key, %cluster, "global service has other ports here, ignoring them");
                    }
                    service.addresses.extend(known.resource.addresses.iter().cloned());
                }
                Some((_, Scope::Local)) => {}
            }
        }
    }
    for (key, (service, _)) in services.iter_mut().filter(|(_, (_, scope))| *scope == Scope::Global) {
        service.addresses.sort_by_key(resource::sort_key);
        service.addresses.dedup();
        let others: BTreeSet<&str> = clusters
            .iter()
            .map(|cluster| cluster.network)
            .filter(|network| *network != own.network)
            .collect();
        let accounts = others.iter().flat_map(|network| remote_workloads(key, network, clusters));
        let accounts: BTreeSet<String> = accounts
            .filter(|workload| !workload.service_account.is_empty())
            .map(|workload| mesh.identity(&workload.namespace, &workload.service_account))
            .collect();
        service.subject_alt_names = accounts.into_iter().collect();
    }
    services
}

fn ports(service: &Service) -> BTreeSet<u32> {
    service.ports.iter().map(|port| port.service_port).collect()
}

/// The workloads behind a global service in one network, whatever their health.
fn remote_workloads<'a>(
    key: &'a str,
    network: &'a str,
    clusters: &'a [TranslatedCluster<'_>],
) -> impl Iterator<Item = &'a Workload> {
    let there = clusters.iter().filter(move |cluster| cluster.network == network && cluster.is_global(key));
    there.flat_map(|cluster| &cluster.workloads).filter(move |workload| workload.services.contains_key(key))
}

/// The gateways into each other network. A cluster's own declaration of one counts more than a discovered one.
fn gateways(
    own: &TranslatedCluster<'_>,
    clusters: &[TranslatedCluster<'_>],
) -> BTreeMap<String, Vec<NetworkGateway>> {
    let mut seen = BTreeSet::new();
    let mut networks: BTreeMap<String, Vec<NetworkGateway>> = BTreeMap::new();
    let declared = gateway::declared(own.id, own.cluster, true);
    let discovered = clusters.iter().filter(|cluster| cluster.id != own.id);
    let discovered = discovered.flat_map(|cluster| gateway::declared(cluster.id, cluster.cluster, false));
    for gateway in declared.into_iter().chain(discovered) {
        if gateway.network != own.network && seen.insert(gateway.key()) {
            networks.entry(gateway.network.clone()).or_default().push(gateway);
        }
    }
    networks
}

impl TranslatedCluster<'_> {
    fn is_global(&self, key: &str) -> bool {
        self.services.get(key).is_some_and(|known| known.scope == Scope::Global)
    }
}

/// The policies of the configuration cluster.
struct Policies<'a> {
    resources: Vec<isthmus_proto::security::Authorization>,
    selecting: Vec<&'a Value>,
    peers: PeerAuthentications<'a>,
}

impl<'a> Policies<'a> {
    fn read(cluster: &'a Cluster, mesh: &'a Mesh) -> Self {
        let root = mesh.root_namespace.as_str();
        let peers = PeerAuthentications::new(cluster.of("PeerAuthentication"), root);
        let mut resources = peers.resources();
        let mut selecting = Vec::new();
        for policy in cluster.of("AuthorizationPolicy") {
            match authorization::translate(policy, mesh) {
                Ok(Some(made)) => {
                    resources.push(made);
                    selecting.extend(authorization::has_selector(policy).then_some(policy));
                }
                Ok(None) => {}
                Err(error) => {
                    let (namespace, name) = (object::namespace(policy), object::name(policy));
                    tracing::warn!(namespace, name, %error, "invalid AuthorizationPolicy, not pushing it");
                }
            }
        }
        Self { resources, selecting, peers }
    }

    /// Names of the policies that choose a pod by its labels.
    fn names_for(&self, pod: &Value, root: &str) -> Vec<String> {
        let chosen = self.selecting.iter().filter(|policy| {
            let namespace = object::namespace(policy);
            let selector = object::string_map(policy, "/spec/selector/matchLabels");
            (namespace == object::namespace(pod) || namespace == root) && object::has_labels(pod, &selector)
        });
        let name = |policy: &&Value| format!("{}/{}", object::namespace(policy), object::name(policy));
        let mut names: Vec<String> = chosen.map(name).collect();
        names.extend(self.peers.names_for(pod));
        names.sort();
        names
    }
}

// === impl Resources ===

impl Resources {
    /// Every resource by name.
    pub(crate) fn all(&self) -> &BTreeMap<String, Arc<Resource>> {
        &self.by_name
    }

    /// One resource.
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.by_name.get(name)
    }

    /// The names that a subscription means: the name itself or what has it as an alias, and for a service its
    /// workloads too.
    pub(crate) fn lookup(&self, asked: &str) -> BTreeSet<String> {
        let mut names = self.aliases.get(asked).cloned().unwrap_or_default();
        if self.by_name.contains_key(asked) {
            names.insert(asked.to_owned());
        }
        let behind: Vec<String> =
            names.iter().flat_map(|name| self.group(&Group::Service(name.clone()))).cloned().collect();
        names.extend(behind);
        names
    }

    /// The names of a group.
    pub(crate) fn group(&self, group: &Group) -> impl Iterator<Item = &String> + use<'_> {
        self.groups.get(group).into_iter().flatten()
    }

    pub(crate) fn add_service(&mut self, service: &Service) {
        self.add(resource::service(service), []);
    }

    pub(crate) fn add_workload(&mut self, workload: &Workload) {
        let services = workload.services.keys().cloned().map(Group::Service);
        let node = (!workload.node.is_empty()).then(|| Group::Node(workload.node.clone()));
        self.add(resource::workload(workload), services.chain(node));
    }

    fn add(&mut self, resource: Resource, groups: impl IntoIterator<Item = Group>) {
        for alias in &resource.aliases {
            self.aliases.entry(alias.clone()).or_default().insert(resource.name.clone());
        }
        for group in groups {
            self.groups.entry(group).or_default().insert(resource.name.clone());
        }
        self.by_name.insert(resource.name.clone(), Arc::new(resource));
    }
}

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
