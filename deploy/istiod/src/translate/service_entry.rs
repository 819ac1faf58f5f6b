//! ServiceEntry → `istio.workload.Service`, and its endpoints and WorkloadEntry → `istio.workload.Workload`. Both count
//! from the cluster whose configuration counts. Pure.

pub(crate) mod check;
pub(crate) mod vips;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_proto::workload::load_balancing::{HealthPolicy, Mode};
use isthmus_proto::workload::{
    LoadBalancing, Locality, NetworkAddress, Port, PortList, Service, TunnelProtocol, Workload, WorkloadType,
};
use serde_json::{Value, json};

use crate::clusters::Cluster;
use crate::translate::address::{network_address, octets};
use crate::translate::mesh_config::{Mesh, Scope};
use crate::translate::service::{self, MeshService, PortNames, Source};
use crate::translate::waypoint::Waypoints;
use crate::translate::workload::{Canonical, ClusterContext};
use playground_k8s::manifest::object;

/// The services of all ServiceEntries by `namespace/hostname`; of several with one name in a namespace the oldest.
pub(crate) fn services<'a>(
    cluster: &'a Cluster,
    network: &str,
    waypoints: &Waypoints<'_>,
) -> BTreeMap<String, MeshService<'a>> {
    let mut known: BTreeMap<String, MeshService<'a>> = BTreeMap::new();
    let mut canonical = std::collections::BTreeSet::new();
    for entry in oldest_first(cluster) {
        for host in object::texts(entry, "/spec/hosts") {
            let mut resource = translate(cluster, entry, host, network);
            resource.waypoint = waypoints.of_service(entry);
            resource.ingress_use_waypoint = waypoints.is_for_ingress(entry);
            let key = service::key(&resource);
            if known.contains_key(&key) {
                continue;
            }
            resource.canonical = canonical.insert(host);
            let selector = object::string_map(entry, "/spec/workloadSelector/labels");
            let names = ports(entry).map(|port| PortNames { own: object::text(port, "/name"), target: None });
            let one = MeshService {
                resource,
                scope: Scope::Local,
                source: Source::Entry,
                selector,
                names: names.collect(),
            };
            known.insert(key, one);
        }
    }
    known
}

fn oldest_first(cluster: &Cluster) -> Vec<&Value> {
    let mut entries: Vec<&Value> =
        cluster.of("ServiceEntry").filter(|entry| check::service_entry(entry).is_ok()).collect();
    // What was made in the same second is in the order of its names already.
    entries.sort_by_key(|entry| object::text(entry, "/metadata/creationTimestamp"));
    entries
}

fn translate(cluster: &Cluster, entry: &Value, host: &str, network: &str) -> Service {
    Service {
        name: object::name(entry).to_owned(),
        namespace: object::namespace(entry).to_owned(),
        hostname: host.to_owned(),
        addresses: addresses(entry, host, network),
        ports: ports(entry).map(port).collect(),
        subject_alt_names: object::texts(entry, "/spec/subjectAltNames").map(str::to_owned).collect(),
        load_balancing: load_balancing(cluster, entry),
        ..Service::default()
    }
}

/// The addresses that are written in the entry, or those that were allocated for a host of it.
fn addresses(entry: &Value, host: &str, network: &str) -> Vec<NetworkAddress> {
    let written = object::texts(entry, "/spec/addresses").filter_map(|text| range(network, text));
    let written: Vec<NetworkAddress> = written.collect();
    if !written.is_empty() || !vips::are_allocated_for(entry) {
        return written;
    }
    let allocated = object::list(entry, "/status/addresses").iter();
    let ours = allocated.filter(|address| {
        matches!(object::text(address, "/host"), "" | "*") || object::text(address, "/host") == host
    });
    let ips = ours.filter_map(|address| object::text(address, "/value").parse().ok());
    ips.map(|ip: IpAddr| network_address(network, ip)).collect()
}

fn range(network: &str, text: &str) -> Option<NetworkAddress> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(network_address(network, ip));
    }
    let net = text.parse::<IpNet>().ok()?.trunc();
    Some(NetworkAddress { length: Some(net.prefix_len().into()), ..network_address(network, net.addr()) })
}

fn ports(entry: &Value) -> impl Iterator<Item = &Value> {
    let ports = object::list(entry, "/spec/ports").iter();
    ports.filter(|port| !object::text(port, "/protocol").eq_ignore_ascii_case("UDP"))
}

fn port(port: &Value) -> Port {
    let service_port = service::number(port.get("number"));
    let target_port = match service::number(port.get("targetPort")) {
        0 => service_port,
        given => given,
    };
    let app_protocol = service::protocol(object::text(port, "/protocol")).into();
    Port { service_port, target_port, app_protocol }
}

fn load_balancing(cluster: &Cluster, entry: &Value) -> Option<LoadBalancing> {
    if resolution(entry) == "NONE" {
        return Some(service::made(Mode::Passthrough, &[], HealthPolicy::AllowAll));
    }
    service::distributed(service::annotated_distribution(cluster, entry)?, HealthPolicy::OnlyHealthy)
}

/// The entry's `resolution`, which is `NONE` when it does not say.
fn resolution(entry: &Value) -> &str {
    match object::text(entry, "/spec/resolution") {
        "" => "NONE",
        resolution => resolution,
    }
}

/// The endpoints that ServiceEntries name themselves, and every WorkloadEntry.
pub(crate) fn workloads(
    mesh: &Mesh,
    context: ClusterContext<'_>,
    policies_for: &impl Fn(&Value) -> Vec<String>,
) -> Vec<Workload> {
    let inline =
        oldest_first(context.entries.cluster).into_iter().flat_map(|entry| endpoints(mesh, context, entry));
    let inline =
        inline.map(|(entry, workload)| Workload { authorization_policies: policies_for(entry), ..workload });
    let mut workloads: Vec<Workload> = inline.collect();
    let entries =
        context.entries.cluster.of("WorkloadEntry").filter(|entry| check::workload_entry(entry).is_ok());
    for entry in entries {
        let labelled = labelled(entry);
        let behind = context.services.iter().filter(|(_, known)| known.selects(&labelled));
        let numbers = entry.pointer("/spec/ports").cloned().unwrap_or_default();
        let services = behind.map(|(key, known)| (key.clone(), known.ports_of(&numbers))).collect();
        let (namespace, name) = (object::namespace(entry), object::name(entry));
        let uid = format!("{}/networking.istio.io/WorkloadEntry/{namespace}/{name}", context.entries.id);
        let made = endpoint(mesh, context, &labelled, uid, &entry["spec"], services);
        workloads.push(Workload { authorization_policies: policies_for(&labelled), ..made });
    }
    workloads
}

/// The endpoints of one entry. One that is found by DNS and names none has an endpoint for each of its hosts.
fn endpoints<'e>(mesh: &Mesh, context: ClusterContext<'_>, entry: &'e Value) -> Vec<(&'e Value, Workload)> {
    let (namespace, name) = (object::namespace(entry), object::name(entry));
    let key = |host: &str| format!("{namespace}/{host}");
    let made = |endpoint_spec: &Value, hosts: &[&str]| {
        let address = object::text(endpoint_spec, "/address");
        let uid =
            format!("{}/networking.istio.io/ServiceEntry/{namespace}/{name}/{address}", context.entries.id);
        let numbers = endpoint_spec.get("ports").cloned().unwrap_or_default();
        let behind = hosts.iter().map(|host| key(host)).filter_map(|key| {
            // Another object may own the name.
            let known = context.services.get(&key).filter(|known| known.resource.name == name)?;
            Some((key, known.ports_of(&numbers)))
        });
        (entry, endpoint(mesh, context, entry, uid, endpoint_spec, behind.collect()))
    };
    let hosts: Vec<&str> = object::texts(entry, "/spec/hosts").collect();
    let given = object::list(entry, "/spec/endpoints");
    let selects = entry.pointer("/spec/workloadSelector").is_some_and(Value::is_object);
    if given.is_empty() && !selects && resolution(entry).starts_with("DNS") {
        return hosts.iter().map(|host| made(&json!({"address": host}), &[host])).collect();
    }
    given.iter().map(|spec| made(spec, &hosts)).collect()
}

/// A workload as both kinds write it.
fn endpoint(
    mesh: &Mesh,
    context: ClusterContext<'_>,
    object: &Value,
    uid: String,
    spec: &Value,
    services: HashMap<String, PortList>,
) -> Workload {
    let address = object::text(spec, "/address");
    let ip = address.parse::<IpAddr>().ok();
    let network = Some(object::text(spec, "/network")).filter(|network| !network.is_empty());
    let weight = spec.get("weight").and_then(Value::as_u64).and_then(|weight| u32::try_from(weight).ok());
    let canonical = Canonical::of(object, object::name(object));
    let tunnels = object::label(object, "networking.istio.io/tunnel").is_some_and(|own| own.contains("http"));
    Workload {
        uid,
        name: object::name(object).to_owned(),
        namespace: object::namespace(object).to_owned(),
        addresses: ip.map(octets).into_iter().collect(),
        hostname: if ip.is_none() { address.to_owned() } else { String::new() },
        network: network.unwrap_or(context.network).to_owned(),
        tunnel_protocol: if tunnels { TunnelProtocol::Hbone } else { TunnelProtocol::None }.into(),
        native_tunnel: tunnels,
        trust_domain: mesh.trust_domain_in_resources(),
        service_account: object::text(spec, "/serviceAccount").to_owned(),
        canonical_name: canonical.name,
        canonical_revision: canonical.revision,
        workload_type: WorkloadType::Pod.into(),
        workload_name: object::name(object).to_owned(),
        services,
        cluster_id: context.entries.id.to_string(),
        locality: locality(object::text(spec, "/locality")),
        waypoint: context.waypoints.of_workload(object),
        capacity: weight.filter(|weight| *weight > 0),
        ..Workload::default()
    }
}

/// A WorkloadEntry with the labels of both places where it may have some.
fn labelled(entry: &Value) -> Value {
    let mut labelled = entry.clone();
    for (key, value) in object::string_map(entry, "/spec/labels") {
        labelled["metadata"]["labels"][key] = value.into();
    }
    labelled
}

/// `region/zone/subzone`, of which the last ones may be left out.
fn locality(text: &str) -> Option<Locality> {
    let mut parts = text.splitn(3, '/').map(str::to_owned);
    let region = parts.next().filter(|region| !region.is_empty())?;
    Some(Locality {
        region,
        zone: parts.next().unwrap_or_default(),
        subzone: parts.next().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests;
