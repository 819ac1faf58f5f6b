//! Services: what Kubernetes' Service and ServiceEntry have in common for the workloads behind them, and the first as
//! `istio.workload.Service`. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use isthmus_proto::workload::{
    AppProtocol, IpFamilies, LoadBalancing, Port, PortList, Service,
    load_balancing::{HealthPolicy, Mode, Scope as Reach},
};
use serde_json::Value;

use crate::clusters::Cluster;
use crate::translate::address::network_address;
use crate::translate::mesh_config::{Mesh, Scope};
use crate::translate::waypoint::Waypoints;
use playground_k8s::manifest::object;

/// A service of one cluster, with what else is needed to connect workloads to it.
#[derive(Debug, Clone)]
pub(crate) struct MeshService<'a> {
    /// The resource of the cluster by itself.
    pub(crate) resource: Service,
    /// How far the service reaches.
    pub(crate) scope: Scope,
    /// What it was made from.
    pub(crate) source: Source,
    /// The labels of the workloads behind it; empty when it has no selector.
    pub(crate) selector: BTreeMap<&'a str, &'a str>,
    /// What the resource's ports are called, in their order.
    pub(crate) names: Vec<PortNames<'a>>,
}

/// Kinds of objects that are services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Kubernetes' Service: a target port may be the name of a container's port.
    Service,
    /// ServiceEntry: endpoints' ports are found by the service port's own name.
    Entry,
}

/// Names of one port.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PortNames<'a> {
    /// Of the port itself.
    pub(crate) own: &'a str,
    /// Of the target port, when that is given by name.
    pub(crate) target: Option<&'a str>,
}

/// The services of Kubernetes in one cluster by `namespace/hostname`.
pub(crate) fn all<'a>(
    mesh: &Mesh,
    cluster: &'a Cluster,
    network: &str,
    waypoints: &Waypoints<'_>,
) -> BTreeMap<String, MeshService<'a>> {
    let services =
        cluster.of("Service").filter(|service| object::text(service, "/spec/type") != "ExternalName");
    let known = services.map(|service| {
        let mut resource = translate(mesh, cluster, service, network);
        resource.waypoint = waypoints.of_service(service);
        resource.ingress_use_waypoint = waypoints.is_for_ingress(service);
        let names = tcp_ports(service).map(|port| PortNames {
            own: object::text(port, "/name"),
            target: port.get("targetPort").and_then(Value::as_str),
        });
        let key = key(&resource);
        let known = MeshService {
            resource,
            scope: mesh.scope(cluster, service),
            source: Source::Service,
            selector: object::string_map(service, "/spec/selector"),
            names: names.collect(),
        };
        (key, known)
    });
    known.collect()
}

/// `namespace/hostname`
pub(crate) fn key(service: &Service) -> String {
    format!("{}/{}", service.namespace, service.hostname)
}

fn translate(mesh: &Mesh, cluster: &Cluster, service: &Value, network: &str) -> Service {
    let (name, namespace) = (object::name(service), object::namespace(service));
    let addresses = object::texts(service, "/spec/clusterIPs").filter_map(|ip| ip.parse::<IpAddr>().ok());
    Service {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        hostname: format!("{name}.{namespace}.svc.{}", mesh.domain),
        addresses: addresses.map(|address| network_address(network, address)).collect(),
        ports: tcp_ports(service).map(resource_port).collect(),
        load_balancing: load_balancing(cluster, service),
        ip_families: ip_families(service).into(),
        canonical: true,
        ..Service::default()
    }
}

impl MeshService<'_> {
    /// Whether a pod or a WorkloadEntry is chosen by the service's selector.
    pub(crate) fn selects(&self, workload: &Value) -> bool {
        !self.selector.is_empty()
            && object::namespace(workload) == self.resource.namespace
            && object::has_labels(workload, &self.selector)
    }

    /// Whether this is a Kubernetes Service without a selector, whose endpoints are in EndpointSlices.
    pub(crate) fn is_sliced(&self) -> bool {
        self.source == Source::Service && self.selector.is_empty()
    }

    /// The ports at a pod; one whose name the pod does not have is left out.
    pub(crate) fn ports_at(&self, pod: &Value) -> PortList {
        self.ports_by(|name| container_port(pod, name))
    }

    /// The ports at a workload that gives numbers for names, as WorkloadEntry does.
    pub(crate) fn ports_of(&self, numbers: &Value) -> PortList {
        self.ports_by(|name| numbers.get(name).map(|port| number(Some(port))).filter(|port| *port != 0))
    }

    /// The ports at an endpoint of a slice, whose own ports are given by name.
    pub(crate) fn ports_named(&self, named: &[Value]) -> PortList {
        let ports = self.resource.ports.iter().zip(&self.names).filter_map(|(port, names)| {
            let found = named.iter().find(|other| object::text(other, "/name") == names.own)?;
            Some(Port { target_port: number(found.get("port")), ..*port })
        });
        PortList { ports: ports.collect() }
    }

    fn ports_by(&self, number_of: impl Fn(&str) -> Option<u32>) -> PortList {
        let ports = self.resource.ports.iter().zip(&self.names).filter_map(|(port, names)| {
            let target_port = match (self.source, names.target) {
                (Source::Service, Some(target)) => number_of(target)?,
                (Source::Service, None) => port.target_port,
                (Source::Entry, _) => number_of(names.own).unwrap_or(port.target_port),
            };
            Some(Port { target_port, ..*port })
        });
        PortList { ports: ports.collect() }
    }
}

fn tcp_ports(service: &Value) -> impl Iterator<Item = &Value> {
    let ports = object::list(service, "/spec/ports").iter();
    ports.filter(|port| matches!(object::text(port, "/protocol"), "" | "TCP"))
}

/// A port with its target, which is zero when it is given by name.
fn resource_port(port: &Value) -> Port {
    let service_port = number(port.get("port"));
    let own = match port.get("targetPort") {
        Some(Value::String(_)) => 0,
        None => service_port,
        given => match number(given) {
            0 => service_port,
            number => number,
        },
    };
    Port { service_port, target_port: own, app_protocol: app_protocol(port).into() }
}

/// A port number, or zero.
pub(crate) fn number(value: Option<&Value>) -> u32 {
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
    protocol(if given.is_empty() { name } else { given })
}

/// What agents can say of a protocol.
pub(crate) fn protocol(name: &str) -> AppProtocol {
    match name.to_ascii_lowercase().as_str() {
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
    if object::text(service, "/spec/internalTrafficPolicy") == "Local" {
        return Some(made(Mode::Strict, &[Reach::Node], health));
    }
    let spec = Some(object::text(service, "/spec/trafficDistribution")).filter(|text| !text.is_empty());
    let distribution = spec.or_else(|| annotated_distribution(cluster, service)).unwrap_or_default();
    let preferred = distributed(distribution, health);
    preferred.or_else(|| allow_all.then(|| made(Mode::UnspecifiedMode, &[], health)))
}

/// The traffic distribution that annotations of an object or of its namespace ask for.
pub(crate) fn annotated_distribution<'a>(cluster: &'a Cluster, service: &'a Value) -> Option<&'a str> {
    const ANNOTATION: &str = "networking.istio.io/traffic-distribution";
    let of_namespace = || {
        let namespace = cluster.get("Namespace", "", object::namespace(service))?;
        object::annotation(namespace, ANNOTATION)
    };
    object::annotation(service, ANNOTATION).or_else(of_namespace)
}

/// What a traffic distribution means; nothing for one that is unknown, as for none.
pub(crate) fn distributed(distribution: &str, health: HealthPolicy) -> Option<LoadBalancing> {
    match distribution.to_ascii_lowercase().as_str() {
        "preferclose" | "prefersamezone" => {
            Some(made(Mode::Failover, &[Reach::Network, Reach::Region, Reach::Zone], health))
        }
        "prefersamenode" => {
            let reach = [Reach::Network, Reach::Region, Reach::Zone, Reach::Subzone, Reach::Node];
            Some(made(Mode::Failover, &reach, health))
        }
        _ => None,
    }
}

/// A way of load balancing.
pub(crate) fn made(mode: Mode, reach: &[Reach], health: HealthPolicy) -> LoadBalancing {
    LoadBalancing {
        routing_preference: reach.iter().map(|scope| (*scope).into()).collect(),
        mode: mode.into(),
        health_policy: health.into(),
    }
}
