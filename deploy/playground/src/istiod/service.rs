//! Kubernetes Service → `istio.workload.Service`. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use isthmus_proto::workload::{
    AppProtocol, IpFamilies, LoadBalancing, NetworkAddress, Port, PortList, Service,
    load_balancing::{HealthPolicy, Mode, Scope as Reach},
};
use serde_json::Value;

use super::mesh::{Mesh, Scope};
use super::world::Cluster;
use crate::manifest::object;

/// A service of one cluster, with what else is needed to connect workloads to it.
#[derive(Debug, Clone)]
pub(super) struct Known<'a> {
    /// The resource of the cluster by itself.
    pub(super) resource: Service,
    /// How far the service reaches.
    pub(super) scope: Scope,
    object: &'a Value,
}

/// The services of one cluster by `namespace/hostname`.
pub(super) fn all<'a>(mesh: &Mesh, cluster: &'a Cluster, network: &str) -> BTreeMap<String, Known<'a>> {
    let services =
        cluster.of("Service").filter(|service| object::text(service, "/spec/type") != "ExternalName");
    let known = services.map(|service| {
        let resource = translate(mesh, cluster, service, network);
        let key = format!("{}/{}", resource.namespace, resource.hostname);
        (key, Known { resource, scope: mesh.scope(cluster, service), object: service })
    });
    known.collect()
}

fn translate(mesh: &Mesh, cluster: &Cluster, service: &Value, network: &str) -> Service {
    let (name, namespace) = (object::name(service), object::namespace(service));
    let addresses = object::texts(service, "/spec/clusterIPs").filter_map(|ip| ip.parse::<IpAddr>().ok());
    Service {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        hostname: format!("{name}.{namespace}.svc.{}", mesh.domain),
        addresses: addresses.map(|address| network_address(network, address)).collect(),
        ports: tcp_ports(service).map(|port| resource_port(port, None)).collect(),
        load_balancing: load_balancing(cluster, service),
        ip_families: ip_families(service).into(),
        canonical: true,
        ..Service::default()
    }
}

/// An address on a network.
pub(super) fn network_address(network: &str, address: IpAddr) -> NetworkAddress {
    NetworkAddress { network: network.to_owned(), address: octets(address), length: None }
}

/// An address as resources carry it.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl Known<'_> {
    /// Whether a pod is chosen by the service's selector.
    pub(super) fn selects(&self, pod: &Value) -> bool {
        let selector = object::string_map(self.object, "/spec/selector");
        !selector.is_empty()
            && object::namespace(pod) == self.resource.namespace
            && object::has_labels(pod, &selector)
    }

    /// Whether the service chooses nobody by itself.
    pub(super) fn has_no_selector(&self) -> bool {
        object::string_map(self.object, "/spec/selector").is_empty()
    }

    /// The ports at a pod; one whose name the pod does not have is left out.
    pub(super) fn ports_at(&self, pod: &Value) -> PortList {
        let resolved = tcp_ports(self.object).filter_map(|port| {
            let target = match port.get("targetPort") {
                Some(Value::String(name)) => Some(container_port(pod, name)?),
                _ => None,
            };
            Some(resource_port(port, target))
        });
        PortList { ports: resolved.collect() }
    }

    /// The ports at an endpoint whose own ports are given by name.
    pub(super) fn ports_named(&self, named: &[Value]) -> PortList {
        let resolved = tcp_ports(self.object).filter_map(|port| {
            let name = object::text(port, "/name");
            let found = named.iter().find(|other| object::text(other, "/name") == name)?;
            Some(resource_port(port, Some(number(found.get("port")))))
        });
        PortList { ports: resolved.collect() }
    }
}

fn tcp_ports(service: &Value) -> impl Iterator<Item = &Value> {
    let ports = object::list(service, "/spec/ports").iter();
    ports.filter(|port| matches!(object::text(port, "/protocol"), "" | "TCP"))
}

/// A port with its target: the given one, else the number in the service, else nothing for a name.
fn resource_port(port: &Value, target: Option<u32>) -> Port {
    let service_port = number(port.get("port"));
    let own = match port.get("targetPort") {
        Some(Value::String(_)) => 0,
        None => service_port,
        given => match number(given) {
            0 => service_port,
            number => number,
        },
    };
    Port { service_port, target_port: target.unwrap_or(own), app_protocol: app_protocol(port).into() }
}

fn number(value: Option<&Value>) -> u32 {
    let port = value.and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
    port.unwrap_or_default().into()
}

/// The number of a container's port by its name; sidecars among the init containers count too.
fn container_port(pod: &Value, name: &str) -> Option<u32> {
    let sidecars = object::list(pod, "/spec/initContainers").iter();
    let sidecars = sidecars.filter(|container| object::text(container, "/restartPolicy") == "Always");
    let containers = object::list(pod, "/spec/containers").iter().chain(sidecars);
    let mut ports = containers.flat_map(|container| object::list(container, "/ports"));
    let is_it = |port: &&Value| {
        object::text(port, "/name") == name && matches!(object::text(port, "/protocol"), "" | "TCP")
    };
    ports.find(is_it).map(|port| number(port.get("containerPort")))
}

/// By `appProtocol`, else by the part of the port's name before a dash.
fn app_protocol(port: &Value) -> AppProtocol {
    let given = object::text(port, "/appProtocol");
    let name = object::text(port, "/name").split('-').next().unwrap_or_default();
    match if given.is_empty() { name } else { given }.to_ascii_lowercase().as_str() {
        "http" => AppProtocol::Http11,
        "http2" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        _ => AppProtocol::Unknown,
    }
}

fn ip_families(service: &Value) -> IpFamilies {
    let families: Vec<&str> = object::texts(service, "/spec/ipFamilies").collect();
    match families.as_slice() {
        [] => IpFamilies::Automatic,
        ["IPv4"] => IpFamilies::Ipv4Only,
        ["IPv6"] => IpFamilies::Ipv6Only,
        _ => IpFamilies::Dual,
    }
}

fn load_balancing(cluster: &Cluster, service: &Value) -> Option<LoadBalancing> {
    let allow_all =
        service.pointer("/spec/publishNotReadyAddresses").and_then(Value::as_bool).unwrap_or(false);
    let health = if allow_all { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy };
    let made = |mode: Mode, reach: &[Reach]| LoadBalancing {
        routing_preference: reach.iter().map(|scope| (*scope).into()).collect(),
        mode: mode.into(),
        health_policy: health.into(),
    };
    if object::text(service, "/spec/internalTrafficPolicy") == "Local" {
        return Some(made(Mode::Strict, &[Reach::Node]));
    }
    const ANNOTATION: &str = "networking.istio.io/traffic-distribution";
    let namespace = cluster.get("Namespace", "", object::namespace(service));
    let spec = Some(object::text(service, "/spec/trafficDistribution")).filter(|text| !text.is_empty());
    let annotation =
        || object::annotation(service, ANNOTATION).or_else(|| object::annotation(namespace?, ANNOTATION));
    let wanted = spec.or_else(annotation).unwrap_or_default().to_ascii_lowercase();
    match wanted.as_str() {
        "preferclose" | "prefersamezone" => {
            Some(made(Mode::Failover, &[Reach::Network, Reach::Region, Reach::Zone]))
        }
        "prefersamenode" => {
            let reach = [Reach::Network, Reach::Region, Reach::Zone, Reach::Subzone, Reach::Node];
            Some(made(Mode::Failover, &reach))
        }
        _ => allow_all.then(|| made(Mode::UnspecifiedMode, &[])),
    }
}
