//! The informer cache: the pods of this node and every namespace's labels, as the API server's watches report them. No
//! I/O: it takes watch events and returns the pods that must be reconciled. It must not know enrolment.

use std::collections::{HashMap, HashSet};

use isthmus_model::PodUid;
use isthmus_proto::enroll::{Decision, Labels, Rules};

use crate::pod::Pod;

/// An event of a watch, with the meanings of `kube::runtime::watcher::Event`.
#[derive(Debug, Clone)]
pub enum WatchEvent<T> {
    /// The watch (re)starts: a list of all objects follows.
    Init,
    /// An object of the list.
    InitApply(T),
    /// The list is complete; objects that it did not name were deleted while the watch was down.
    InitDone,
    /// The object was added or changed.
    Apply(T),
    /// The object was deleted.
    Delete(T),
}

/// A Namespace object, reduced to what the enrolment rule reads.
#[derive(Debug, Clone)]
pub struct NamespaceLabels {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: Labels,
}

/// An event of one of the two watches.
#[derive(Debug, Clone)]
pub enum ObjectEvent {
    /// Pods of this node.
    Pod(WatchEvent<Pod>),
    /// All namespaces.
    Namespace(WatchEvent<NamespaceLabels>),
}

/// The last known state of the watched objects.
#[derive(Debug, Default)]
pub struct ObjectCache {
    pods: HashMap<PodUid, Pod>,
    by_name: HashMap<(String, String), PodUid>,
    namespaces: HashMap<String, Labels>,
    /// Pods that the current list has named; `None` while no list is being read.
    listed_pods: Option<HashSet<PodUid>>,
    listed_namespaces: Option<HashSet<String>>,
    pods_known: bool,
    namespaces_known: bool,
}

impl ObjectCache {
    /// Applies an event. Returns the pods whose desired state may have changed.
    pub fn apply(&mut self, event: ObjectEvent) -> Vec<PodUid> {
        match event {
            ObjectEvent::Pod(event) => self.pod_event(event),
            ObjectEvent::Namespace(event) => self.namespace_event(event),
        }
    }

    /// Whether both lists were read completely once.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.pods_known && self.namespaces_known
    }

    /// A pod by its UID.
    #[must_use]
    pub fn pod(&self, uid: &PodUid) -> Option<&Pod> {
        self.pods.get(uid)
    }

    /// All pods of the node.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// The pod of this name whose creation the CNI plugin can be asking about. A pod of the name that has terminated
    /// or is being deleted is its predecessor (a StatefulSet reuses names).
    #[must_use]
    pub fn startable(&self, namespace: &str, name: &str) -> Option<&Pod> {
        let uid = self.by_name.get(&(namespace.to_owned(), name.to_owned()))?;
        self.pods.get(uid).filter(|pod| !pod.terminated && !pod.deleting)
    }

    /// Whether the pod is to be enrolled; `None` while its namespace is not known.
    #[must_use]
    pub fn decide(&self, rules: &Rules, pod: &Pod) -> Option<Decision> {
        let labels = self.namespaces.get(pod.pod.namespace.as_str())?;
        Some(rules.decide(pod.facts(), labels))
    }

    fn pod_event(&mut self, event: WatchEvent<Pod>) -> Vec<PodUid> {
        match event {
            WatchEvent::Init => {
                self.listed_pods = Some(HashSet::new());
                Vec::new()
            }
            WatchEvent::InitApply(pod) => {
                if let Some(listed) = &mut self.listed_pods {
                    listed.insert(pod.pod.uid.clone());
                }
                self.upsert_pod(pod)
            }
            WatchEvent::InitDone => {
                self.pods_known = true;
                let Some(listed) = self.listed_pods.take() else { return Vec::new() };
                let gone: Vec<_> = self.pods.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
                gone.iter().for_each(|uid| self.remove_pod(uid));
                gone
            }
            WatchEvent::Apply(pod) => self.upsert_pod(pod),
            WatchEvent::Delete(pod) => {
                self.remove_pod(&pod.pod.uid);
                vec![pod.pod.uid]
            }
        }
    }

    fn upsert_pod(&mut self, pod: Pod) -> Vec<PodUid> {
        let uid = pod.pod.uid.clone();
        let mut changed = Vec::new();
        let name = (pod.pod.namespace.to_string(), pod.pod.name.to_string());
        if let Some(old) = self.by_name.insert(name, uid.clone()).filter(|old| *old != uid) {
            // Only one pod of a name exists at a time, so the deletion of the old one was missed.
            self.pods.remove(&old);
            changed.push(old);
        }
        if self.pods.get(&uid) != Some(&pod) {
            self.pods.insert(uid.clone(), pod);
            changed.push(uid);
        }
        changed
    }

    fn remove_pod(&mut self, uid: &PodUid) {
        let Some(pod) = self.pods.remove(uid) else { return };
        let name = (pod.pod.namespace.to_string(), pod.pod.name.to_string());
        if self.by_name.get(&name) == Some(uid) {
            self.by_name.remove(&name);
        }
    }

    fn namespace_event(&mut self, event: WatchEvent<NamespaceLabels>) -> Vec<PodUid> {
        match event {
            WatchEvent::Init => {
                self.listed_namespaces = Some(HashSet::new());
                Vec::new()
            }
            WatchEvent::InitApply(namespace) => {
                if let Some(listed) = &mut self.listed_namespaces {
                    listed.insert(namespace.name.clone());
                }
                self.upsert_namespace(namespace)
            }
            WatchEvent::InitDone => {
                self.namespaces_known = true;
                if let Some(listed) = self.listed_namespaces.take() {
                    self.namespaces.retain(|name, _| listed.contains(name));
                }
                // Pods of a deleted namespace get deletion events of their own; until then they stay enrolled.
                Vec::new()
            }
            WatchEvent::Apply(namespace) => self.upsert_namespace(namespace),
            WatchEvent::Delete(namespace) => {
                self.namespaces.remove(&namespace.name);
                Vec::new()
            }
        }
    }

    fn upsert_namespace(&mut self, namespace: NamespaceLabels) -> Vec<PodUid> {
        let NamespaceLabels { name, labels } = namespace;
        if self.namespaces.get(&name) == Some(&labels) {
            return Vec::new();
        }
        let changed = self
            .pods
            .values()
            .filter(|pod| pod.pod.namespace.as_str() == name)
            .map(|pod| pod.pod.uid.clone())
            .collect();
        self.namespaces.insert(name, labels);
        changed
    }
}

#[cfg(test)]
mod tests;
