//! The objects of every cluster that this control plane reads, as its watches tell them. It knows kinds and keys, not
//! what is made of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use playground_k8s::client::{Collection, Event};
use playground_k8s::manifest::{Kind, object};

/// The kinds that are followed in every cluster.
pub(crate) const FOLLOWED: [&str; 11] = [
    "Namespace",
    "Node",
    "Pod",
    "Service",
    "EndpointSlice",
    "AuthorizationPolicy",
    "PeerAuthentication",
    "Gateway",
    "ServiceEntry",
    "WorkloadEntry",
    "ConfigMap",
];

/// Name of a cluster, as in `ISTIO_META_CLUSTER_ID`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClusterId(pub(crate) String);

/// Every cluster that is read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clusters {
    clusters: BTreeMap<ClusterId, Cluster>,
}

/// What one cluster holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cluster {
    /// By kind, then by namespace and name.
    objects: BTreeMap<&'static str, BTreeMap<(String, String), Arc<Value>>>,
    synced: BTreeSet<&'static str>,
    /// The last resource version of each kind that was taken in.
    versions: BTreeMap<&'static str, u64>,
}

// === impl Clusters ===

impl Clusters {
    /// Adds a cluster of which nothing is known yet.
    pub(crate) fn add(&mut self, id: ClusterId) {
        self.clusters.entry(id).or_default();
    }

    /// The clusters by id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ClusterId, &Cluster)> {
        self.clusters.iter()
    }

    /// One cluster.
    pub(crate) fn cluster(&self, id: &ClusterId) -> Option<&Cluster> {
        self.clusters.get(id)
    }

    /// The last resource version of each kind in each cluster that was taken in.
    pub(crate) fn versions(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let of = |cluster: &Cluster| {
            cluster.versions.iter().map(|(kind, version)| ((*kind).to_owned(), *version)).collect()
        };
        self.clusters.iter().map(|(id, cluster)| (id.to_string(), of(cluster))).collect()
    }

    /// Takes in what a watch of one kind has told.
    pub(crate) fn apply(&mut self, id: &ClusterId, kind: &'static str, event: Event) {
        self.clusters.entry(id.clone()).or_default().apply(kind, event);
    }
}

// === impl Cluster ===

impl Cluster {
    /// The objects of a kind, by namespace and name.
    pub(crate) fn of(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.objects.get(kind).into_iter().flat_map(BTreeMap::values).map(|object| &**object)
    }

    /// One object; the namespace of a cluster-scoped kind is empty.
    pub(crate) fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<&Value> {
        let key = (namespace.to_owned(), name.to_owned());
        self.objects.get(kind)?.get(&key).map(|object| &**object)
    }

    /// Whether every followed kind has been read once.
    pub(crate) fn is_synced(&self) -> bool {
        FOLLOWED.iter().all(|kind| self.synced.contains(kind))
    }

    fn apply(&mut self, kind: &'static str, event: Event) {
        let objects = self.objects.entry(kind).or_default();
        let key = |object: &Value| (object::namespace(object).to_owned(), object::name(object).to_owned());
        if let Event::Applied(object) | Event::Deleted(object) = &event {
            let version: u64 = object::text(object, "/metadata/resourceVersion").parse().unwrap_or_default();
            let last = self.versions.entry(kind).or_default();
            *last = version.max(*last);
        }
        match event {
            Event::Applied(object) => _ = objects.insert(key(&object), Arc::new(object)),
            Event::Deleted(object) => _ = objects.remove(&key(&object)),
            Event::Synced => _ = self.synced.insert(kind),
        }
    }
}

impl std::fmt::Display for ClusterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether an object is of those that are followed.
pub fn is_followed(object: &Value, root_namespace: &str) -> bool {
    let kind = object::text(object, "/kind");
    let is_mesh = (object::namespace(object), object::name(object)) == (root_namespace, "istio");
    FOLLOWED.contains(&kind) && (kind != "ConfigMap" || is_mesh)
}

/// The objects of a kind that are followed; nothing when the kind is not known.
pub(crate) fn collection(kind: &str, root_namespace: &str) -> Option<Collection> {
    let all = Collection::from(Kind::named(kind)?);
    if kind != "ConfigMap" {
        return Some(all);
    }
    // Of configuration maps only the mesh's own configuration is wanted.
    let fields = Some("metadata.name=istio".to_owned());
    Some(Collection { namespace: Some(root_namespace.to_owned()), fields, ..all })
}
