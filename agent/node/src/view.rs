//! What the API server says about this node: its pods and every namespace's labels. Sans-IO: takes watch events, says which
//! pods must be looked at again.

use std::collections::{HashMap, HashSet};

use isthmus_model::name::PodUid;
use isthmus_proto::enroll::{Decision, Labels, Rules};

use crate::pod::Pod;

/// One event of a watch.
#[derive(Debug, Clone)]
pub enum Watched<T> {
    /// The watch starts again: a list follows.
    Restarted,
    /// An entry of the list.
    Listed(T),
    /// The list is complete; what it did not name is gone.
    ListDone,
    /// Added or changed.
    Applied(T),
    /// Deleted.
    Deleted(T),
}

/// A namespace: the part that matters.
#[derive(Debug, Clone)]
pub struct NamespaceLabels {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
}

/// An event of either watch.
#[derive(Debug, Clone)]
pub enum Event {
    /// Of the pods of this node.
    Pod(Watched<Pod>),
    /// Of the namespaces.
    Namespace(Watched<NamespaceLabels>),
}

/// The last known state.
#[derive(Debug, Default)]
pub struct View {
    pods: HashMap<PodUid, Pod>,
    by_name: HashMap<(String, String), PodUid>,
    namespaces: HashMap<String, Labels>,
    /// Named by the list that is being read; `None` between lists.
    listed_pods: Option<HashSet<PodUid>>,
    listed_namespaces: Option<HashSet<String>>,
    pods_known: bool,
    namespaces_known: bool,
}

impl View {
    /// Takes an event in; the answer is the pods for which something may have changed.
    pub fn apply(&mut self, event: Event) -> Vec<PodUid> {
        match event {
            Event::Pod(event) => self.pod_event(event),
            Event::Namespace(event) => self.namespace_event(event),
        }
    }

    /// Whether both watches have been read once.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.pods_known && self.namespaces_known
    }

    /// A pod by its UID.
    #[must_use]
    pub fn pod(&self, uid: &PodUid) -> Option<&Pod> {
        self.pods.get(uid)
    }

    /// Every pod.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// The pod that goes by this name and can still be started. One that has ended or is being deleted is the
    /// predecessor of the pod that is meant.
    #[must_use]
    pub fn startable(&self, namespace: &str, name: &str) -> Option<&Pod> {
        let uid = self.by_name.get(&(namespace.to_owned(), name.to_owned()))?;
        self.pods.get(uid).filter(|pod| !pod.terminated && !pod.deleting)
    }

    /// Whether the pod belongs to the mesh; `None` while its namespace is not known.
    #[must_use]
    pub fn decide(&self, rules: &Rules, pod: &Pod) -> Option<Decision> {
        let labels = self.namespaces.get(&pod.namespace)?;
        Some(rules.decide(pod.facts(), labels))
    }

    fn pod_event(&mut self, event: Watched<Pod>) -> Vec<PodUid> {
        match event {
            Watched::Restarted => {
                self.listed_pods = Some(HashSet::new());
                Vec::new()
            }
            Watched::Listed(pod) => {
                if let Some(listed) = &mut self.listed_pods {
                    listed.insert(pod.uid.clone());
                }
                self.put_pod(pod)
            }
            Watched::ListDone => {
                self.pods_known = true;
                let Some(listed) = self.listed_pods.take() else { return Vec::new() };
                let gone: Vec<_> = self.pods.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
                gone.iter().for_each(|uid| self.drop_pod(uid));
                gone
            }
            Watched::Applied(pod) => self.put_pod(pod),
            Watched::Deleted(pod) => {
                self.drop_pod(&pod.uid);
                vec![pod.uid]
            }
        }
    }

    fn put_pod(&mut self, pod: Pod) -> Vec<PodUid> {
        let uid = pod.uid.clone();
        let mut touched = Vec::new();
        let name = (pod.namespace.clone(), pod.name.clone());
        if let Some(old) = self.by_name.insert(name, uid.clone()).filter(|old| *old != uid) {
            // Its successor is here, so the deletion was missed.
            self.pods.remove(&old);
            touched.push(old);
        }
        if self.pods.get(&uid) != Some(&pod) {
            self.pods.insert(uid.clone(), pod);
            touched.push(uid);
        }
        touched
    }

    fn drop_pod(&mut self, uid: &PodUid) {
        let Some(pod) = self.pods.remove(uid) else { return };
        let name = (pod.namespace, pod.name);
        if self.by_name.get(&name) == Some(uid) {
            self.by_name.remove(&name);
        }
    }

    fn namespace_event(&mut self, event: Watched<NamespaceLabels>) -> Vec<PodUid> {
        match event {
            Watched::Restarted => {
                self.listed_namespaces = Some(HashSet::new());
                Vec::new()
            }
            Watched::Listed(namespace) => {
                if let Some(listed) = &mut self.listed_namespaces {
                    listed.insert(namespace.name.clone());
                }
                self.put_namespace(namespace)
            }
            Watched::ListDone => {
                self.namespaces_known = true;
                if let Some(listed) = self.listed_namespaces.take() {
                    self.namespaces.retain(|name, _| listed.contains(name));
                }
                // Pods of a namespace that is gone are deleted one by one; until then they stay as they are.
                Vec::new()
            }
            Watched::Applied(namespace) => self.put_namespace(namespace),
            Watched::Deleted(namespace) => {
                self.namespaces.remove(&namespace.name);
                Vec::new()
            }
        }
    }

    fn put_namespace(&mut self, namespace: NamespaceLabels) -> Vec<PodUid> {
        let NamespaceLabels { name, labels } = namespace;
        if self.namespaces.get(&name) == Some(&labels) {
            return Vec::new();
        }
        let touched =
            self.pods.values().filter(|pod| pod.namespace == name).map(|pod| pod.uid.clone()).collect();
        self.namespaces.insert(name, labels);
        touched
    }
}

#[cfg(test)]
mod tests;
