//! One immutable picture of the mesh. Readers hold it for as long as one decision takes.

use std::sync::Arc;

use isthmus_model::workload::PortMap;
use isthmus_model::{
    AgentPorts, ClusterId, Health, Hostname, Namespace, NamespacedHostname, NetworkAddress, NetworkId,
    NodeName, PodRef, Policy, PolicyKey, Service, TrustDomains, Workload, WorkloadUid,
};

use crate::endpoints::EndpointSet;
use crate::policies::{Applicable, InForce, Policies};
use crate::services::{Asker, Services};
use crate::workloads::Workloads;

/// Where this agent is, and what it tells.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Its network.
    pub own_network: NetworkId,
    /// Its cluster.
    pub own_cluster: ClusterId,
    /// Its node.
    pub own_node: NodeName,
    /// The namespace whose policies may apply to the whole mesh; empty when it is not known.
    pub root_namespace: Namespace,
    /// Ports of the agent, to which no connection may lead.
    pub ports: AgentPorts,
    /// Whether dry-run policies are logged at info instead of debug (`AUTHZ_POLICY_INFO_LOGGING`).
    pub loud_policies: bool,
}

/// The mesh at one moment. Cloning shares everything.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub(crate) options: Arc<Options>,
    pub(crate) trust_domains: Arc<TrustDomains>,
    pub(crate) version: u64,
    pub(crate) workloads: Workloads,
    pub(crate) services: Services,
    pub(crate) policies: Policies,
}

/// A workload as a member of one service.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'a> {
    /// The workload.
    pub workload: &'a Arc<Workload>,
    /// Service port → target port (0: the service's own).
    pub ports: &'a PortMap,
}

// === impl Options ===

impl Options {
    /// Whether a workload is of this agent's node. An agent that does not know its node takes every workload for its
    /// own.
    pub(crate) fn is_here(&self, workload: &Workload) -> bool {
        self.own_node.is_empty() || workload.node == self.own_node
    }
}

// === impl Endpoint ===

impl<'a> Endpoint<'a> {
    /// Key of the workload.
    #[must_use]
    pub fn uid(&self) -> &'a WorkloadUid {
        &self.workload.uid
    }

    /// Whether it takes traffic.
    #[must_use]
    pub fn status(&self) -> Health {
        self.workload.status
    }
}

// === impl Snapshot ===

impl Snapshot {
    /// An empty mesh.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self { options: Arc::new(options), ..Self::default() }
    }

    /// Where this agent is.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The names of the mesh's trust domain.
    #[must_use]
    pub fn trust_domains(&self) -> &Arc<TrustDomains> {
        &self.trust_domains
    }

    /// How many batches came before this picture.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The workload of this key.
    #[must_use]
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid.as_str())
    }

    /// Every workload, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.iter()
    }

    /// How many workloads there are.
    #[must_use]
    pub fn workload_count(&self) -> usize {
        self.workloads.len()
    }

    /// The workload at an address; a pod in the mesh wins over others, and one on its node's network is never found.
    #[must_use]
    pub fn workload_by_addr(&self, address: &NetworkAddress) -> Option<&Arc<Workload>> {
        self.workloads.at(address)
    }

    /// The workload of a pod of this node.
    #[must_use]
    pub fn local_workload(&self, pod: &PodRef) -> Option<&Arc<Workload>> {
        self.workloads.of_pod(pod, &self.options)
    }

    /// Every workload of a node, by uid.
    pub fn on_node(&self, node: &NodeName) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.on_node(node)
    }

    /// The workload that a `<namespace>/<hostname>` reference means.
    #[must_use]
    pub fn workload_by_hostname(&self, name: &NamespacedHostname) -> Option<&Arc<Workload>> {
        self.workloads.by_hostname(name)
    }

    /// Every service, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter()
    }

    /// The service of this key.
    #[must_use]
    pub fn service(&self, key: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The service of a virtual address, exact or by range, as a client of this namespace sees it (`None`: as nobody
    /// in particular does, nothing hidden).
    #[must_use]
    pub fn service_by_vip(&self, vip: &NetworkAddress, client: Option<&Namespace>) -> Option<&Arc<Service>> {
        self.services.at(vip, Asker { namespace: client, preferred: None })
    }

    /// The service of a hostname, as a client of this namespace sees it.
    #[must_use]
    pub fn service_by_hostname(
        &self,
        hostname: &Hostname,
        client: Option<&Namespace>,
    ) -> Option<&Arc<Service>> {
        let asker = Asker { namespace: client, preferred: None };
        asker.best(self.services.named(hostname.as_str()).iter())
    }

    /// Endpoints of a service, known or staged, by uid.
    pub fn endpoints<'a>(&'a self, key: &'a NamespacedHostname) -> impl Iterator<Item = Endpoint<'a>> {
        let members = self.services.endpoints(key).into_iter().flat_map(EndpointSet::iter);
        members.filter_map(|workload| workload.services.get(key).map(|ports| Endpoint { workload, ports }))
    }

    /// Services that have endpoints but have not arrived themselves.
    pub fn staged(&self) -> impl Iterator<Item = &NamespacedHostname> {
        self.services.staged().map(|(key, _)| key)
    }

    /// Every policy with its key, in no order.
    pub fn policies(&self) -> impl Iterator<Item = (&PolicyKey, &Arc<Policy>)> {
        self.policies.iter()
    }

    /// The policy of this key.
    #[must_use]
    pub fn policy(&self, key: &PolicyKey) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    /// What applies to a workload: policies of its namespace, global ones, and those that it names, arrived or not.
    pub fn policies_for<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = Applicable<'a>> {
        self.policies.of(workload)
    }

    /// By what connections to a workload are judged, to be compared with what it is later.
    #[must_use]
    pub fn in_force(&self, workload: &Workload) -> InForce {
        self.policies.in_force(workload, &self.trust_domains)
    }
}
