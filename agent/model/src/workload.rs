//! One endpoint of the mesh: a pod, a VM, a gateway, or the stand-in for a service in a remote network.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::{Arc, LazyLock};

use crate::addr::GatewayAddress;
use crate::identity::{SpiffeId, TrustDomain};
use crate::name::{
    ClusterId, Hostname, Namespace, NamespacedHostname, NetworkId, NodeName, PolicyKey, ServiceAccount, Text,
    WorkloadUid,
};

/// Ports of a service as one workload serves them: service port → target port (0: not known, use the service's).
pub type PortMap = BTreeMap<u16, u16>;

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
    /// The application expects a tunnel on its port.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Membership: service → ports of this endpoint.
    pub services: Memberships,
    /// Keys of selector policies attached to it.
    pub authorization_policies: Vec<PolicyKey>,
    /// Health.
    pub status: Health,
    /// Cluster; `Kubernetes` when the wire has none.
    pub cluster_id: ClusterId,
    /// Where it runs.
    pub locality: Locality,
    /// Whether its addresses are its own.
    pub network_mode: NetworkMode,
    /// Weight among endpoints; 1 when the wire has none.
    pub capacity: u32,
}

/// The services that a workload belongs to, each with its ports there. Clones share it, and so can equal ones of
/// different workloads: those of one deployment all have the same.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Memberships(Arc<BTreeMap<NamespacedHostname, PortMap>>);

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
    /// It does.
    #[default]
    Healthy,
    /// It does not, unless the service's health policy says so.
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
    /// Deployment, and whatever is not known.
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
    /// What is written before the payload.
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

// === impl Memberships ===

impl Memberships {
    /// Adds a service, or replaces its ports.
    pub fn insert(&mut self, service: NamespacedHostname, ports: PortMap) {
        Arc::make_mut(&mut self.0).insert(service, ports);
    }

    /// Whether nobody else holds this one.
    pub(crate) fn is_unshared(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl Default for Memberships {
    /// Most workloads without services are of no deployment, so what is empty is shared by all of them.
    fn default() -> Self {
        static NONE: LazyLock<Memberships> = LazyLock::new(|| Memberships(Arc::default()));
        NONE.clone()
    }
}

impl Deref for Memberships {
    type Target = BTreeMap<NamespacedHostname, PortMap>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl From<BTreeMap<NamespacedHostname, PortMap>> for Memberships {
    fn from(services: BTreeMap<NamespacedHostname, PortMap>) -> Self {
        if services.is_empty() { Self::default() } else { Self(Arc::new(services)) }
    }
}

impl FromIterator<(NamespacedHostname, PortMap)> for Memberships {
    fn from_iter<I: IntoIterator<Item = (NamespacedHostname, PortMap)>>(services: I) -> Self {
        services.into_iter().collect::<BTreeMap<_, _>>().into()
    }
}

// === impl Workload ===

impl Workload {
    /// The identity it must prove.
    #[must_use]
    pub fn identity(&self) -> SpiffeId {
        SpiffeId::new(self.trust_domain.clone(), self.namespace.clone(), self.service_account.clone())
    }
}
