//! A workload: a pod, a VM, a gateway, or the stand-in for a service in a remote network.

mod memberships;

use std::net::IpAddr;

pub use self::memberships::{Memberships, PortMap};
use crate::addr::GatewayAddress;
use crate::identity::{SpiffeId, TrustDomain};
use crate::name::{
    ClusterId, Hostname, Namespace, NetworkId, NodeName, PolicyKey, ServiceAccount, Text, WorkloadUid,
};

/// A workload as the control plane described it. Field meanings: `istio.workload.Workload`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Workload {
    /// Primary key.
    pub uid: WorkloadUid,
    /// Pod name.
    pub name: Text,
    /// Namespace.
    pub namespace: Namespace,
    /// Addresses, canonical.
    pub addresses: Vec<IpAddr>,
    /// Name to resolve when there are no addresses; empty when there is none.
    pub hostname: Hostname,
    /// Network of the addresses.
    pub network: NetworkId,
    /// How it is reached.
    pub protocol: Protocol,
    /// Trust domain of its identity.
    pub trust_domain: TrustDomain,
    /// Service account; `default` when the wire has none.
    pub service_account: ServiceAccount,
    /// Workload waypoint.
    pub waypoint: Option<GatewayAddress>,
    /// Gateway through which its network is reached.
    pub network_gateway: Option<GatewayAddress>,
    /// Node.
    pub node: NodeName,
    /// Canonical service name (telemetry).
    pub canonical_name: Text,
    /// Canonical revision (telemetry).
    pub canonical_revision: Text,
    /// Kind of its controller (telemetry).
    pub workload_type: WorkloadType,
    /// Name of its controller (telemetry).
    pub workload_name: Text,
    /// Speaks HBONE itself.
    pub native_tunnel: bool,
    /// The application expects a tunnel (a sandwiched waypoint).
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Membership: service → ports of this endpoint.
    pub services: Memberships,
    /// Keys of selector policies attached to it.
    pub authorization_policies: Vec<PolicyKey>,
    /// Health.
    pub status: Health,
    /// Cluster; `Kubernetes` when the wire has none.
    pub cluster_id: ClusterId,
    /// Locality.
    pub locality: Locality,
    /// Whether its addresses are its own.
    pub network_mode: NetworkMode,
    /// Weight among endpoints; 1 when the wire has none.
    pub capacity: u32,
}

/// How a workload is reached.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Protocol {
    /// Plain TCP: it is not in the mesh.
    #[default]
    Tcp,
    /// HBONE on 15008.
    Hbone,
}

/// Whether an endpoint takes traffic.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Health {
    /// It takes traffic.
    #[default]
    Healthy,
    /// It takes none, unless the service's health policy allows it.
    Unhealthy,
}

/// Whether the workload shares its node's addresses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum NetworkMode {
    /// Addresses of its own.
    #[default]
    Standard,
    /// The node's addresses: never found by address.
    HostNetwork,
}

/// Kind of the controller that made the workload.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum WorkloadType {
    /// Deployment, and any unknown kind.
    #[default]
    Deployment,
    /// Cron job.
    CronJob,
    /// Bare pod.
    Pod,
    /// Job.
    Job,
}

impl WorkloadType {
    /// Lower-case name, as in baggage and in the dump.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}

/// The application is behind a tunnel of its own (a sandwiched waypoint).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ApplicationTunnel {
    /// What precedes the payload.
    pub protocol: TunnelKind,
    /// Port that replaces the destination's.
    pub port: Option<u16>,
}

/// What an application tunnel starts with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TunnelKind {
    /// Nothing.
    None,
    /// A PROXY protocol v2 header.
    Proxy,
}

/// Region, zone and subzone; empty texts are unknown.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Locality {
    /// Region.
    pub region: Text,
    /// Zone.
    pub zone: Text,
    /// Subzone.
    pub subzone: Text,
}

// === impl Workload ===

impl Workload {
    /// The SPIFFE identity that it must present.
    #[must_use]
    pub fn identity(&self) -> SpiffeId {
        SpiffeId::new(self.trust_domain.clone(), self.namespace.clone(), self.service_account.clone())
    }
}
