//! Kubernetes Pod, and an endpoint of a slice that is no pod, → `istio.workload.Workload`. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use isthmus_proto::workload::{
    Locality, NetworkMode, TunnelProtocol, Workload, WorkloadStatus, WorkloadType,
};
use serde_json::Value;

use crate::clusters::{Cluster, ClusterId};
use crate::translate::address::octets;
use crate::translate::mesh_config::Mesh;
use crate::translate::service::MeshService;
use crate::translate::waypoint::Waypoints;
use playground_k8s::manifest::object;

/// Where workloads are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClusterContext<'a> {
    /// Their cluster's name.
    pub(crate) id: &'a ClusterId,
    /// Their cluster.
    pub(crate) cluster: &'a Cluster,
    /// The network that all pods of the cluster are on.
    pub(crate) network: &'a str,
    /// The cluster's services.
    pub(crate) services: &'a BTreeMap<String, MeshService<'a>>,
    /// The cluster's waypoints.
    pub(crate) waypoints: &'a Waypoints<'a>,
    /// Whose ServiceEntries and WorkloadEntries count.
    pub(crate) entries: Entries<'a>,
}

/// The cluster whose configuration counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entries<'a> {
    pub(crate) id: &'a ClusterId,
    pub(crate) cluster: &'a Cluster,
}

/// What a workload is called in telemetry.
#[derive(Debug)]
pub(crate) struct Canonical {
    pub(crate) name: String,
    pub(crate) revision: String,
}

/// The pods of a cluster, and the endpoints of its slices that are no pods; `policies_for` names the policies that
/// select a pod.
pub(crate) fn all(
    mesh: &Mesh,
    context: ClusterContext<'_>,
    policies_for: &impl Fn(&Value) -> Vec<String>,
) -> Vec<Workload> {
    let pods = context.cluster.of("Pod").filter(|pod| !has_ended(pod));
    let mut workloads: Vec<Workload> = pods
        .filter_map(|pod| from_pod(mesh, context, pod))
        .map(|(pod, workload)| Workload { authorization_policies: policies_for(pod), ..workload })
        .collect();
    workloads.extend(context.cluster.of("EndpointSlice").flat_map(|slice| from_slice(context, slice)));
    workloads
}

/// The network of a cluster: the label of its root namespace.
pub(crate) fn network<'a>(cluster: &'a Cluster, root_namespace: &str) -> Option<&'a str> {
    object::label(cluster.get("Namespace", "", root_namespace)?, "topology.istio.io/network")
}

fn has_ended(pod: &Value) -> bool {
    matches!(object::text(pod, "/status/phase"), "Succeeded" | "Failed")
}

fn from_pod<'a>(mesh: &Mesh, context: ClusterContext<'_>, pod: &'a Value) -> Option<(&'a Value, Workload)> {
    let addresses = addresses(pod);
    if addresses.is_empty() {
        return None;
    }
    let (name, namespace) = (object::name(pod), object::namespace(pod));
    let node = object::text(pod, "/spec/nodeName");
    let workload_name = owner_name(pod);
    let (tunnel_protocol, native_tunnel) = tunnel(pod);
    let canonical = Canonical::of(pod, workload_name);
    let workload = Workload {
        uid: format!("{}//Pod/{namespace}/{name}", context.id),
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        addresses: addresses.into_iter().map(octets).collect(),
        network: context.network.to_owned(),
        tunnel_protocol: tunnel_protocol.into(),
        trust_domain: mesh.trust_domain_in_resources(),
        service_account: account(pod).to_owned(),
        node: node.to_owned(),
        canonical_name: canonical.name,
        canonical_revision: canonical.revision,
        workload_type: WorkloadType::Pod.into(),
        workload_name: workload_name.to_owned(),
        native_tunnel,
        services: services(context, pod),
        status: status(pod).into(),
        cluster_id: context.id.to_string(),
        locality: context.cluster.get("Node", "", node).and_then(locality),
        network_mode: network_mode(pod).into(),
        waypoint: context.waypoints.of_workload(pod),
        application_tunnel: context.waypoints.binding_of(pod),
        ..Workload::default()
    };
    Some((pod, workload))
}

impl Canonical {
    /// From labels, else `name`.
    pub(crate) fn of(object: &Value, name: &str) -> Self {
        let first = |keys: &[&str]| keys.iter().find_map(|key| object::label(object, key)).map(str::to_owned);
        let labelled = first(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
        let revision =
            first(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
        Self {
            name: labelled.unwrap_or_else(|| name.to_owned()),
            revision: revision.unwrap_or_else(|| "latest".to_owned()),
        }
    }
}

/// Whether a pod takes tunnels, and whether it ends them itself: a captured one leaves that to its node agent.
fn tunnel(pod: &Value) -> (TunnelProtocol, bool) {
    let own =
        object::label(pod, "networking.istio.io/tunnel").is_some_and(|protocols| protocols.contains("http"));
    let captured = object::annotation(pod, "ambient.istio.io/redirection") == Some("enabled");
    (if captured || own { TunnelProtocol::Hbone } else { TunnelProtocol::None }, own)
}

fn status(pod: &Value) -> WorkloadStatus {
    let is_healthy = object::has_condition(pod, "Ready") && !object::is_deleting(pod);
    if is_healthy { WorkloadStatus::Healthy } else { WorkloadStatus::Unhealthy }
}

fn network_mode(pod: &Value) -> NetworkMode {
    let is_hosts = pod.pointer("/spec/hostNetwork").and_then(Value::as_bool).unwrap_or(false);
    if is_hosts { NetworkMode::HostNetwork } else { NetworkMode::Standard }
}

/// The account that a pod runs as.
pub(crate) fn account(pod: &Value) -> &str {
    match object::text(pod, "/spec/serviceAccountName") {
        "" => "default",
        account => account,
    }
}

fn addresses(pod: &Value) -> Vec<IpAddr> {
    let all = object::list(pod, "/status/podIPs").iter().map(|one| object::text(one, "/ip"));
    let found: Vec<IpAddr> = all.filter_map(|text| text.parse().ok()).collect();
    if found.is_empty() { object::text(pod, "/status/podIP").parse().into_iter().collect() } else { found }
}

/// The name of what made the pod: of the deployment, not of one of its replica sets.
fn owner_name(pod: &Value) -> &str {
    let owners = object::list(pod, "/metadata/ownerReferences");
    let Some(owner) = owners.iter().find(|owner| owner["controller"] == true).or_else(|| owners.first())
    else {
        return object::name(pod);
    };
    let name = object::text(owner, "/name");
    let hash =
        object::label(pod, "pod-template-hash").filter(|_| object::text(owner, "/kind") == "ReplicaSet");
    let deployment = hash.and_then(|hash| name.strip_suffix(hash)?.strip_suffix('-'));
    deployment.unwrap_or(name)
}

fn locality(node: &Value) -> Option<Locality> {
    let label = |key: &str| object::label(node, key).unwrap_or_default().to_owned();
    let locality = Locality {
        region: label("topology.kubernetes.io/region"),
        zone: label("topology.kubernetes.io/zone"),
        subzone: label("topology.istio.io/subzone"),
    };
    (locality != Locality::default()).then_some(locality)
}

/// The services that a pod stands behind: by their selectors, or because a service's own slice names it.
fn services(
    context: ClusterContext<'_>,
    pod: &Value,
) -> std::collections::HashMap<String, isthmus_proto::workload::PortList> {
    let named = |known: &MeshService<'_>| {
        known.is_sliced()
            && slices_of(context.cluster, known).any(|slice| {
                object::list(slice, "/endpoints").iter().any(|endpoint| {
                    object::text(endpoint, "/targetRef/kind") == "Pod"
                        && object::text(endpoint, "/targetRef/name") == object::name(pod)
                        && object::namespace(slice) == object::namespace(pod)
                })
            })
    };
    let behind = context.services.iter().filter(|(_, known)| known.selects(pod) || named(known));
    behind.map(|(key, known)| (key.clone(), known.ports_at(pod))).collect()
}

fn slices_of<'a>(cluster: &'a Cluster, known: &MeshService<'_>) -> impl Iterator<Item = &'a Value> {
    let (namespace, name) = (known.resource.namespace.clone(), known.resource.name.clone());
    cluster.of("EndpointSlice").filter(move |slice| {
        object::namespace(slice) == namespace
            && object::label(slice, "kubernetes.io/service-name") == Some(name.as_str())
    })
}

/// The endpoints of a slice that are no pods, for a service without a selector.
fn from_slice(context: ClusterContext<'_>, slice: &Value) -> Vec<Workload> {
    let service = object::label(slice, "kubernetes.io/service-name");
    let known = context.services.iter().find(|(_, known)| {
        known.is_sliced()
            && Some(known.resource.name.as_str()) == service
            && known.resource.namespace == object::namespace(slice)
    });
    let Some((key, known)) = known else {
        return Vec::new();
    };
    let (name, namespace) = (object::name(slice), object::namespace(slice));
    let ports = known.ports_named(object::list(slice, "/ports"));
    let endpoints = object::list(slice, "/endpoints").iter();
    let strangers = endpoints.filter(|endpoint| object::text(endpoint, "/targetRef/kind") != "Pod");
    let workload = |(endpoint, address): (&Value, IpAddr)| {
        // An endpoint that does not say is ready.
        let ready = endpoint.pointer("/conditions/ready").and_then(Value::as_bool).unwrap_or(true);
        Workload {
            uid: format!("{}/discovery.k8s.io/EndpointSlice/{namespace}/{name}/{address}", context.id),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            addresses: vec![octets(address)],
            network: context.network.to_owned(),
            workload_type: WorkloadType::Pod.into(),
            services: [(key.clone(), ports.clone())].into(),
            status: if ready { WorkloadStatus::Healthy } else { WorkloadStatus::Unhealthy }.into(),
            cluster_id: context.id.to_string(),
            network_mode: NetworkMode::HostNetwork.into(),
            ..Workload::default()
        }
    };
    let addressed = strangers.flat_map(|endpoint| {
        object::texts(endpoint, "/addresses")
            .filter_map(|text| text.parse().ok())
            .map(move |address| (endpoint, address))
    });
    addressed.map(workload).collect()
}
