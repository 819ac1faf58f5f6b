//! The gateways of networks: found in the clusters' Gateway objects, and shown to other networks as workloads, one for
//! the gateway itself and one for every global service behind it. Pure.

use std::net::IpAddr;

use isthmus_proto::workload::{
    GatewayAddress, NamespacedHostname, PortList, Service, TunnelProtocol, Workload, WorkloadType,
    gateway_address::Destination,
};
use serde_json::Value;

use crate::clusters::{Cluster, ClusterId};
use crate::translate::address::{network_address, octets};
use crate::translate::mesh_config::Mesh;
use playground_k8s::manifest::object;

/// The port of HBONE when a gateway does not say.
const HBONE: u32 = 15008;

/// One address of a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkGateway {
    /// The network that it leads into.
    pub(crate) network: String,
    cluster: ClusterId,
    namespace: String,
    name: String,
    account: String,
    address: Address,
    /// The port of a gateway that was declared by hand; zero for one that was discovered.
    port: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Address {
    Ip(IpAddr),
    Hostname(String),
}

/// The gateways that a cluster declares: those into other networks (class `istio-remote`) when it is `own`, and its
/// own (class `istio-east-west`) when it is not.
pub(crate) fn declared(id: &ClusterId, cluster: &Cluster, own: bool) -> Vec<NetworkGateway> {
    let class = if own { "istio-remote" } else { "istio-east-west" };
    let gateways = cluster.of("Gateway").filter(|one| object::text(one, "/spec/gatewayClassName") == class);
    gateways.flat_map(|gateway| addresses(id, gateway, own)).collect()
}

fn addresses(id: &ClusterId, gateway: &Value, own: bool) -> Vec<NetworkGateway> {
    let Some(network) = object::label(gateway, "topology.istio.io/network") else {
        return Vec::new();
    };
    let mut listeners = object::list(gateway, "/spec/listeners").iter();
    let listener = listeners.find(|listener| {
        let mode = object::text(listener, "/tls/mode");
        object::text(listener, "/protocol") == "HBONE" && (own || mode == "Terminate")
    });
    let Some(listener) = listener else {
        return Vec::new();
    };
    let port = listener.get("port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
    let name = object::name(gateway);
    let default_account = if own { format!("{name}-istio-remote") } else { name.to_owned() };
    let account = object::annotation(gateway, "gateway.istio.io/service-account").map(str::to_owned);
    let account = account.unwrap_or(default_account);
    let one = |address: &Value| {
        let value = object::text(address, "/value");
        let address = match object::text(address, "/type") {
            "Hostname" => Address::Hostname(value.to_owned()),
            "IPAddress" => Address::Ip(value.parse().ok()?),
            _ => return None,
        };
        Some(NetworkGateway {
            network: network.to_owned(),
            cluster: id.clone(),
            namespace: object::namespace(gateway).to_owned(),
            name: name.to_owned(),
            account: account.clone(),
            address,
            port: if own { port.unwrap_or_default().into() } else { 0 },
        })
    };
    object::list(gateway, "/status/addresses").iter().filter_map(one).collect()
}

// === impl NetworkGateway ===

impl NetworkGateway {
    /// What two declarations of one gateway have in common.
    pub(crate) fn key(&self) -> String {
        format!("{}/{}/{}", self.namespace, self.name, self.address)
    }

    /// The workload that the outer tunnel goes to; its account is the gateway's identity.
    pub(crate) fn workload(&self, mesh: &Mesh) -> Workload {
        let uid = format!("NetworkGateway/{}/{}/{}", self.network, self.address, self.port);
        let (addresses, hostname) = match &self.address {
            Address::Ip(ip) => (vec![octets(*ip)], String::new()),
            Address::Hostname(name) => (Vec::new(), name.clone()),
        };
        Workload {
            name: uid.clone(),
            uid,
            namespace: self.namespace.clone(),
            addresses,
            hostname,
            network: self.network.clone(),
            trust_domain: mesh.trust_domain_in_resources(),
            service_account: self.account.clone(),
            workload_type: WorkloadType::Pod.into(),
            cluster_id: self.cluster.to_string(),
            ..Workload::default()
        }
    }

    /// How workloads behind this gateway name it.
    pub(crate) fn address(&self) -> GatewayAddress {
        let destination = match &self.address {
            Address::Ip(ip) => Destination::Address(network_address(&self.network, *ip)),
            Address::Hostname(hostname) => Destination::Hostname(NamespacedHostname {
                namespace: self.namespace.clone(),
                hostname: hostname.clone(),
            }),
        };
        let port = if self.port == 0 { HBONE } else { self.port };
        GatewayAddress { hbone_mtls_port: port, destination: Some(destination) }
    }

    /// The stand-in for all workloads of a global service behind this gateway; `capacity` is how many they are worth.
    pub(crate) fn split_horizon(&self, mesh: &Mesh, service: &Service, capacity: u32) -> Workload {
        let uid = format!(
            "{}/SplitHorizonWorkload/{}/{}/{}/{}/{}",
            self.network, self.namespace, self.name, self.address, service.namespace, service.hostname
        );
        let key = format!("{}/{}", service.namespace, service.hostname);
        Workload {
            name: uid.clone(),
            uid,
            namespace: service.namespace.clone(),
            network: self.network.clone(),
            trust_domain: mesh.trust_domain_in_resources(),
            capacity: Some(capacity),
            workload_type: WorkloadType::Pod.into(),
            tunnel_protocol: TunnelProtocol::Hbone.into(),
            network_gateway: Some(self.address()),
            cluster_id: self.cluster.to_string(),
            services: [(key, PortList { ports: service.ports.clone() })].into(),
            ..Workload::default()
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Hostname(name) => f.write_str(name),
        }
    }
}
