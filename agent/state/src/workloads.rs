//! The store of workloads and its indices: by uid, address, pod, node and hostname.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use isthmus_model::{
    Namespace, NamespacedHostname, NetworkAddress, NetworkId, NetworkMode, NodeName, PodRef, Protocol,
    ServiceAccount, Text, Workload, WorkloadUid,
};

use crate::index::{Map, Multi};
use crate::options::Options;
use crate::table::{Key, Table};

/// What finds the workload of a pod: a [`PodRef`] without its UID, which the workload API does not carry.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct PodKey {
    name: Text,
    namespace: Namespace,
    service_account: ServiceAccount,
}

/// The store and its indices, which always agree.
#[derive(Clone, Debug, Default)]
pub(crate) struct Workloads {
    by_uid: Table<Arc<Workload>>,
    by_address: Table<Arc<Workload>>,
    /// Workloads of this node; all of them when the agent does not know its node.
    by_pod: Multi<PodKey, Arc<Workload>>,
    by_node: Map<NodeName, Arc<BTreeMap<WorkloadUid, Arc<Workload>>>>,
    by_hostname: Multi<NamespacedHostname, Arc<Workload>>,
}

// === impl PodKey ===

impl From<&PodRef> for PodKey {
    // Names are shared: this allocates nothing.
    fn from(pod: &PodRef) -> Self {
        Self {
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            service_account: pod.service_account.clone(),
        }
    }
}

impl PodKey {
    fn of(workload: &Workload) -> Self {
        Self {
            name: workload.name.clone(),
            namespace: workload.namespace.clone(),
            service_account: workload.service_account.clone(),
        }
    }
}

// === impl Workloads ===

impl Workloads {
    pub(crate) fn get(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.by_uid.get(Key::of(uid)).find(|workload| workload.uid.as_str() == uid)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.by_uid.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_uid.len()
    }

    /// The workload at an address. Of several, a pod in the mesh is most likely meant: pod and HBONE, then pod, then HBONE,
    /// then the rest; the latest of equals.
    pub(crate) fn by_address(&self, address: &NetworkAddress) -> Option<&Arc<Workload>> {
        let NetworkAddress { network, address } = address;
        let there = self
            .by_address
            .get(address_key(network, address))
            .filter(|workload| workload.network == *network && workload.addresses.contains(address));
        there.max_by_key(|workload| {
            (workload.uid.as_str().contains("//Pod/"), workload.protocol == Protocol::Hbone)
        })
    }

    /// The workload of a pod of this node. Other clusters may have pods of the same name, so those of this one come first.
    pub(crate) fn by_pod(&self, pod: &PodRef, own: &Options) -> Option<&Arc<Workload>> {
        self.by_pod.get(&pod.into()).iter().max_by_key(|workload| {
            (
                workload.network == own.own_network,
                workload.cluster_id == own.own_cluster,
                workload.node == own.own_node,
            )
        })
    }

    pub(crate) fn on_node(&self, node: &NodeName) -> impl Iterator<Item = &Arc<Workload>> {
        self.by_node.get(node).into_iter().flat_map(|workloads| workloads.values())
    }

    pub(crate) fn by_hostname(&self, name: &NamespacedHostname) -> Option<&Arc<Workload>> {
        self.by_hostname.get(name).first()
    }

    /// Adds a workload that is not stored yet.
    pub(crate) fn insert(&mut self, workload: &Arc<Workload>, own: &Options) {
        let same = |stored: &Arc<Workload>| stored.uid == workload.uid;
        self.by_uid.insert(Key::of(workload.uid.as_str()), Arc::clone(workload));
        for key in address_keys(workload) {
            self.by_address.insert(key, Arc::clone(workload));
        }
        if own.is_on_own_node(workload) {
            self.by_pod.insert(&PodKey::of(workload), Arc::clone(workload), same);
        }
        if let Some(name) = hostname(workload) {
            self.by_hostname.insert(&name, Arc::clone(workload), same);
        }
        if !workload.node.is_empty() {
            if !self.by_node.contains_key(&workload.node) {
                self.by_node.insert_mut(workload.node.clone(), Arc::default());
            }
            if let Some(there) = self.by_node.get_mut(&workload.node) {
                Arc::make_mut(there).insert(workload.uid.clone(), Arc::clone(workload));
            }
        }
    }

    /// Removes a stored workload.
    pub(crate) fn remove(&mut self, workload: &Arc<Workload>) {
        let same = |stored: &Arc<Workload>| stored.uid == workload.uid;
        self.by_uid.remove(Key::of(workload.uid.as_str()), same);
        for key in address_keys(workload) {
            self.by_address.remove(key, same);
        }
        self.by_pod.remove(&PodKey::of(workload), same);
        if let Some(name) = hostname(workload) {
            self.by_hostname.remove(&name, same);
        }
        if let Some(there) = self.by_node.get_mut(&workload.node) {
            Arc::make_mut(there).remove(&workload.uid);
            if there.is_empty() {
                self.by_node.remove_mut(&workload.node);
            }
        }
    }
}

fn address_key(network: &NetworkId, address: &IpAddr) -> Key {
    Key::of(&(network.as_str(), address))
}

/// The keys of the addresses by which a workload is found, without duplicates. None for a pod on the host network: its
/// address is the node's, which all such pods share.
fn address_keys(workload: &Workload) -> impl Iterator<Item = Key> {
    let own = workload.network_mode != NetworkMode::HostNetwork;
    let addresses = if own { workload.addresses.as_slice() } else { &[] };
    let first = |(at, address): &(usize, &IpAddr)| !addresses[..*at].contains(address);
    let first = addresses.iter().enumerate().filter(first);
    first.map(|(_, address)| address_key(&workload.network, address))
}

fn hostname(workload: &Workload) -> Option<NamespacedHostname> {
    (!workload.hostname.is_empty()).then(|| NamespacedHostname {
        namespace: workload.namespace.clone(),
        hostname: workload.hostname.clone(),
    })
}
