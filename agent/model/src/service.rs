//! A service: hostname and virtual addresses that clients use, and how its endpoints are selected.

use std::collections::BTreeMap;

use crate::addr::{GatewayAddress, NetworkAddress};
use crate::identity::SpiffeId;
use crate::name::{Hostname, Namespace, NamespacedHostname, NetworkId, Text};

/// A service as the control plane described it. Field meanings: `istio.workload.Service`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Short name.
    pub name: Text,
    /// Namespace.
    pub namespace: Namespace,
    /// Fully qualified name.
    pub hostname: Hostname,
    /// Virtual addresses.
    pub vips: Vec<NetworkAddress>,
    /// Virtual address ranges.
    pub cidr_vips: Vec<NetworkCidr>,
    /// Service port → target port (0: named, known per endpoint).
    pub ports: BTreeMap<u16, u16>,
    /// Identities that its endpoints may present besides their own.
    pub subject_alt_names: Vec<SpiffeId>,
    /// Service waypoint.
    pub waypoint: Option<GatewayAddress>,
    /// Waypoints with weights.
    pub weighted_waypoints: Vec<(GatewayAddress, u32)>,
    /// Load balancing; `None`: all endpoints, weighted by capacity.
    pub load_balancer: Option<LoadBalancer>,
    /// Address families; `None`: whatever the endpoints have.
    pub ip_families: Option<IpFamilies>,
    /// Preferred among services with the same address or hostname in different namespaces.
    pub canonical: bool,
    /// Namespaces that see it.
    pub visibility: Visibility,
}

/// A range of virtual addresses in a network.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct NetworkCidr {
    /// The network.
    pub network: NetworkId,
    /// The range.
    pub cidr: ipnet::IpNet,
}

/// How endpoints are ranked and filtered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadBalancer {
    /// Scopes, most important first.
    pub routing_preferences: Vec<LbScope>,
    /// How the ranking is applied.
    pub mode: LbMode,
    /// Which endpoints are used.
    pub health_policy: HealthPolicy,
}

/// A scope of locality.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LbScope {
    /// Same region.
    Region,
    /// Same zone.
    Zone,
    /// Same subzone.
    Subzone,
    /// Same node.
    Node,
    /// Same cluster.
    Cluster,
    /// Same network.
    Network,
}

/// How the ranking is applied.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LbMode {
    /// No ranking.
    Standard,
    /// Only endpoints that match every scope.
    Strict,
    /// The best rank that has endpoints.
    Failover,
    /// Never load balanced: the original destination is used.
    Passthrough,
}

/// Which endpoints are used.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HealthPolicy {
    /// Healthy ones.
    OnlyHealthy,
    /// All of them.
    AllowAll,
}

/// Address families of a service.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum IpFamilies {
    /// Both.
    Dual,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl IpFamilies {
    /// Whether an address of this family may be used.
    #[must_use]
    pub fn accepts(self, address: std::net::IpAddr) -> bool {
        match self {
            Self::Dual => true,
            Self::Ipv4 => address.is_ipv4(),
            Self::Ipv6 => address.is_ipv6(),
        }
    }
}

/// Namespaces that see a service.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Visibility {
    /// All namespaces.
    #[default]
    Public,
    /// Its own namespace.
    Namespace,
}

impl Service {
    /// Its key.
    #[must_use]
    pub fn key(&self) -> NamespacedHostname {
        NamespacedHostname { namespace: self.namespace.clone(), hostname: self.hostname.clone() }
    }
}
