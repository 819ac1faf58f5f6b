//! Waypoints: found among a cluster's Gateways, and which of them a service or a workload uses by its labels or by those
//! of its namespace. Pure.

use std::net::IpAddr;

use isthmus_proto::workload::application_tunnel::Protocol;
use isthmus_proto::workload::{
    ApplicationTunnel, GatewayAddress, NamespacedHostname, gateway_address::Destination,
};
use serde_json::Value;

use crate::clusters::Cluster;
use crate::translate::address::network_address;
use crate::translate::mesh_config::LabelSelector;
use playground_k8s::manifest::object;

/// The port of every waypoint.
const HBONE: u32 = 15008;
/// Classes of Gateways that lead into networks instead.
const OTHER_CLASSES: [&str; 2] = ["istio-east-west", "istio-remote"];
const USE: &str = "istio.io/use-waypoint";
const USE_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
const MANAGED: &str = "gateway.istio.io/managed";
/// Whose pod it is.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// What a waypoint in the mesh expects on its port: `PROXY` or `NONE`, with a port behind a slash when it is another.
const BINDING: &str = "ambient.istio.io/waypoint-inbound-binding";

/// The waypoints of one cluster.
#[derive(Debug)]
pub(crate) struct Waypoints<'a> {
    cluster: &'a Cluster,
    all: Vec<Waypoint<'a>>,
}

#[derive(Debug)]
struct Waypoint<'a> {
    gateway: &'a Value,
    address: GatewayAddress,
    for_services: bool,
    for_workloads: bool,
}

// === impl Waypoints ===

impl<'a> Waypoints<'a> {
    /// Every Gateway that has an address and can be one.
    pub(crate) fn new(cluster: &'a Cluster, network: &str) -> Self {
        let all = cluster.of("Gateway").filter_map(|gateway| Waypoint::read(gateway, network));
        Self { cluster, all: all.collect() }
    }

    /// The waypoint of a service, of either kind.
    pub(crate) fn of_service(&self, service: &Value) -> Option<GatewayAddress> {
        self.used_by(service)
            .filter(|waypoint| waypoint.for_services)
            .map(|waypoint| waypoint.address.clone())
    }

    /// The waypoint of a pod or a WorkloadEntry.
    pub(crate) fn of_workload(&self, workload: &Value) -> Option<GatewayAddress> {
        self.used_by(workload)
            .filter(|waypoint| waypoint.for_workloads)
            .map(|waypoint| waypoint.address.clone())
    }

    /// What a pod expects that is a waypoint and in the mesh itself (a sandwich).
    pub(crate) fn binding_of(&self, pod: &Value) -> Option<ApplicationTunnel> {
        let name = object::label(pod, GATEWAY_NAME)?;
        let gateway = self.cluster.get("Gateway", object::namespace(pod), name)?;
        binding(object::annotation(gateway, BINDING)?)
    }

    /// Whether gateways from outside go through a service's waypoint too.
    pub(crate) fn is_for_ingress(&self, service: &Value) -> bool {
        const LABEL: &str = "istio.io/ingress-use-waypoint";
        let of_namespace = || object::label(self.namespace(object::namespace(service))?, LABEL);
        object::label(service, LABEL).or_else(of_namespace) == Some("true")
    }

    fn used_by(&self, object: &Value) -> Option<&Waypoint<'a>> {
        // A gateway of the mesh is at the end of its own way.
        let gateways = ["istio.io-mesh-controller", "istio.io-eastwest-controller"];
        if object::label(object, MANAGED).is_some_and(|manager| gateways.contains(&manager)) {
            return None;
        }
        let namespace = object::namespace(object);
        let (named_in, name) = match Self::named(object, namespace) {
            Some(named) => named,
            None => Self::named(self.namespace(namespace)?, namespace)?,
        };
        if name == "none" {
            return None;
        }
        let is_it = |one: &&Waypoint<'a>| {
            (object::namespace(one.gateway), object::name(one.gateway)) == (named_in, name)
        };
        let waypoint = self.all.iter().find(is_it);
        waypoint.filter(|waypoint| waypoint.admits(namespace, self.namespace(namespace)))
    }

    /// Namespace and name of the waypoint that labels ask for.
    fn named<'v>(labelled: &'v Value, namespace: &'v str) -> Option<(&'v str, &'v str)> {
        let name = object::label(labelled, USE).filter(|name| !name.is_empty())?;
        Some((object::label(labelled, USE_NAMESPACE).unwrap_or(namespace), name))
    }

    fn namespace(&self, name: &str) -> Option<&'a Value> {
        self.cluster.get("Namespace", "", name)
    }
}

/// A binding that says neither is none.
fn binding(text: &str) -> Option<ApplicationTunnel> {
    let (protocol, port) = text.split_once('/').unwrap_or((text, "0"));
    let protocol = match protocol {
        "PROXY" => Protocol::Proxy,
        "NONE" => Protocol::None,
        _ => return None,
    };
    Some(ApplicationTunnel { protocol: protocol.into(), port: port.parse::<u16>().ok()?.into() })
}

// === impl Waypoint ===

impl<'a> Waypoint<'a> {
    fn read(gateway: &'a Value, network: &str) -> Option<Self> {
        if OTHER_CLASSES.contains(&object::text(gateway, "/spec/gatewayClassName")) {
            return None;
        }
        let addresses = object::list(gateway, "/status/addresses");
        let hostname = addresses.iter().find(|address| object::text(address, "/type") == "Hostname");
        let destination = match hostname {
            Some(hostname) => Destination::Hostname(NamespacedHostname {
                namespace: object::namespace(gateway).to_owned(),
                hostname: object::text(hostname, "/value").to_owned(),
            }),
            None => {
                let ip =
                    addresses.iter().find_map(|one| object::text(one, "/value").parse::<IpAddr>().ok())?;
                Destination::Address(network_address(network, ip))
            }
        };
        let traffic = object::label(gateway, "istio.io/waypoint-for").unwrap_or("service");
        Some(Self {
            gateway,
            address: GatewayAddress { hbone_mtls_port: HBONE, destination: Some(destination) },
            for_services: matches!(traffic, "service" | "all"),
            for_workloads: matches!(traffic, "workload" | "all"),
        })
    }

    /// Whether what lives in a namespace may use it: by the allowed routes of its HBONE listener.
    fn admits(&self, namespace: &str, labelled: Option<&Value>) -> bool {
        if object::namespace(self.gateway) == namespace {
            return true;
        }
        let mut listeners = object::list(self.gateway, "/spec/listeners").iter();
        let listener = listeners.find(|listener| {
            object::text(listener, "/protocol") == "HBONE" && listener["port"] == u64::from(HBONE)
        });
        let Some(listener) = listener else { return false };
        match object::text(listener, "/allowedRoutes/namespaces/from") {
            "All" => true,
            "Selector" => {
                let selector =
                    LabelSelector::read(listener.pointer("/allowedRoutes/namespaces/selector")).ok();
                selector.zip(labelled).is_some_and(|(selector, labelled)| selector.matches(labelled))
            }
            _ => false,
        }
    }
}
