//! One immutable version of the mesh: the stores and their indices, and the queries that every decision starts from.
//! Readers hold a snapshot for one decision. It decides nothing itself.

use std::sync::Arc;

use isthmus_model::workload::PortMap;
use isthmus_model::{
    Health, Hostname, Namespace, NamespacedHostname, NetworkAddress, NodeName, PodRef, Policy, PolicyKey,
    Service, TrustDomains, Workload, WorkloadUid,
};

use crate::balance::EndpointSet;
use crate::options::Options;
use crate::policies::{ApplicablePolicy, EffectivePolicies, Policies};
use crate::services::{NamespaceScope, Services};
use crate::workloads::Workloads;

/// The mesh at one version. A clone shares everything, and a change to the clone copies only what it touches.
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

/// Whose an address is.
#[derive(Clone, Copy, Debug)]
pub enum Addressee<'a> {
    /// A service's virtual address.
    Service(&'a Arc<Service>),
    /// A workload's own address.
    Workload(&'a Arc<Workload>),
}

// === impl Endpoint ===

impl<'a> Endpoint<'a> {
    /// The uid of the workload.
    #[must_use]
    pub fn uid(&self) -> &'a WorkloadUid {
        &self.workload.uid
    }

    /// Its health, as the control plane reports it.
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

    /// The settings of this agent.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The trust domain of the mesh and its aliases.
    #[must_use]
    pub fn trust_domains(&self) -> &Arc<TrustDomains> {
        &self.trust_domains
    }

    /// Number of changes that led to this snapshot.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The workload of this uid.
    #[must_use]
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid.as_str())
    }

    /// Every workload, in no particular order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.iter()
    }

    /// Number of workloads.
    #[must_use]
    pub fn workload_count(&self) -> usize {
        self.workloads.len()
    }

    /// The workload at an address. Of several, a pod in the mesh wins. A pod on the host network is never found this way:
    /// it shares its address with the node and with other such pods.
    #[must_use]
    pub fn workload_by_addr(&self, address: &NetworkAddress) -> Option<&Arc<Workload>> {
        self.workloads.by_address(address)
    }

    /// The workload of a pod of this node.
    #[must_use]
    pub fn local_workload(&self, pod: &PodRef) -> Option<&Arc<Workload>> {
        self.workloads.by_pod(pod, &self.options)
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

    /// Every service, in no particular order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter()
    }

    /// The service of this key.
    #[must_use]
    pub fn service(&self, key: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The service of a virtual address, exact or by range, as a client of this namespace sees it. With `None` nothing
    /// is hidden.
    #[must_use]
    pub fn service_by_vip(&self, vip: &NetworkAddress, client: Option<&Namespace>) -> Option<&Arc<Service>> {
        self.services.by_vip(vip, NamespaceScope { client, preferred: None })
    }

    /// What a connection to this address and port is for, as a client of this namespace sees it: an exact address counts
    /// more than a range, be it a service's or a workload's, and a range counts on the ports of its service only.
    #[must_use]
    pub fn addressee(
        &self,
        address: &NetworkAddress,
        port: u16,
        client: Option<&Namespace>,
    ) -> Option<Addressee<'_>> {
        let scope = NamespaceScope { client, preferred: None };
        if let Some(service) = self.services.by_vip_and_port(address, port, scope) {
            return Some(Addressee::Service(service));
        }
        if let Some(workload) = self.workload_by_addr(address) {
            return Some(Addressee::Workload(workload));
        }
        self.services.by_range_and_port(address, port, scope).map(Addressee::Service)
    }

    /// The service of a hostname, as a client of this namespace sees it: one that has the port, if there is one.
    #[must_use]
    pub fn service_by_hostname(
        &self,
        hostname: &Hostname,
        port: u16,
        client: Option<&Namespace>,
    ) -> Option<&Arc<Service>> {
        let scope = NamespaceScope { client, preferred: None };
        let named = self.services.by_hostname(hostname.as_str());
        let with_port = named.iter().filter(|service| service.ports.contains_key(&port));
        scope.best(with_port).or_else(|| scope.best(named.iter()))
    }

    /// Endpoints of a service in the order of their uids, whether or not the service itself has arrived.
    pub fn endpoints<'a>(&'a self, key: &'a NamespacedHostname) -> impl Iterator<Item = Endpoint<'a>> {
        let members = self.services.endpoints(key).into_iter().flat_map(EndpointSet::iter);
        members.filter_map(|workload| workload.services.get(key).map(|ports| Endpoint { workload, ports }))
    }

    /// Services that endpoints refer to but that have not arrived.
    pub fn staged(&self) -> impl Iterator<Item = &NamespacedHostname> {
        self.services.staged().map(|(key, _)| key)
    }

    /// Every policy with its key, in no particular order.
    pub fn policies(&self) -> impl Iterator<Item = (&PolicyKey, &Arc<Policy>)> {
        self.policies.iter()
    }

    /// The policy of this key.
    #[must_use]
    pub fn policy(&self, key: &PolicyKey) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    /// The policies that apply to a workload: those of its namespace, global ones, and those that it names, arrived or
    /// not.
    pub fn policies_for<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = ApplicablePolicy<'a>> {
        self.policies.applying_to(workload)
    }

    /// The policies in force for a workload, to be compared with those of a later snapshot.
    #[must_use]
    pub fn effective_policies(&self, workload: &Workload) -> EffectivePolicies {
        self.policies.effective_policies(workload, &self.trust_domains)
    }
}
