//! Keeps the snapshot up to date: watches every kind in every cluster, debounces changes, translates them, and
//! publishes the outcome. It also puts the root certificate into every namespace, and addresses for their
//! hosts into the status of ServiceEntries.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use isthmus_rt::task::Tasks;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::clusters::{ClusterId, Clusters, FOLLOWED, collection};
use crate::serve::pushes::PushLog;
use crate::snapshot::Snapshot;
use crate::translate::mesh_config::Mesh;
use crate::translate::service_entry::vips::{self, Allocation};
use crate::translate::view;
use playground_k8s::client::{Client, Event};
use playground_k8s::manifest::{Kind, object};

/// Changes are gathered until none came for this long,
const QUIET: Duration = Duration::from_millis(20);
/// but no longer than this.
const LONGEST: Duration = Duration::from_millis(100);
/// How long the start waits for clusters other than its own.
const REMOTES: Duration = Duration::from_secs(10);
/// How many events may wait.
const QUEUE: usize = 1024;
/// The ConfigMap with the mesh's root certificate.
const ROOT_MAP: &str = "istio-ca-root-cert";

/// One event of one cluster.
type ClusterEvent = (ClusterId, &'static str, Event);

/// What is followed, and how it is translated.
pub(crate) struct Follower {
    pub(crate) mesh: Mesh,
    /// The cluster whose configuration counts.
    pub(crate) own: ClusterId,
    /// The network of the own cluster, when it does not say.
    pub(crate) network: String,
    pub(crate) clients: Vec<(ClusterId, Client)>,
    /// PEM.
    pub(crate) roots: String,
    clusters: Clusters,
    published: BTreeSet<(ClusterId, String)>,
    /// The entries that addresses were written into, as they were then.
    allocated: BTreeSet<(String, String, String)>,
    log: PushLog,
    number: u64,
}

impl Follower {
    pub(crate) fn new(
        mesh: Mesh,
        own: ClusterId,
        network: String,
        clients: Vec<(ClusterId, Client)>,
        roots: String,
        log: PushLog,
    ) -> Self {
        let mut clusters = Clusters::default();
        for (id, _) in &clients {
            clusters.add(id.clone());
        }
        Self {
            mesh,
            own,
            network,
            clients,
            roots,
            clusters,
            published: BTreeSet::new(),
            allocated: BTreeSet::new(),
            log,
            number: 0,
        }
    }

    /// Begins to follow; gives what is known once the own cluster, and the others if they answer in time, are read.
    pub(crate) async fn start(mut self, tasks: &Tasks) -> watch::Receiver<Arc<Snapshot>> {
        let mut events = self.follow(tasks);
        self.first(&mut events).await;
        let mut last = Arc::new(self.translate());
        self.log.published(&last, &last);
        let (sender, receiver) = watch::channel(Arc::clone(&last));
        let group = tasks.clone();
        tasks.spawn("follow", async move {
            loop {
                self.publish_roots(&group);
                self.allocate(&group);
                let Some(event) = events.recv().await else {
                    return;
                };
                self.apply(event);
                let longest = Instant::now() + LONGEST;
                while let Ok(Some(event)) =
                    tokio::time::timeout_at((Instant::now() + QUIET).min(longest), events.recv()).await
                {
                    self.apply(event);
                }
                let next = Arc::new(self.translate());
                self.log.published(&last, &next);
                last = Arc::clone(&next);
                sender.send_replace(next);
            }
        });
        receiver
    }

    fn follow(&self, tasks: &Tasks) -> mpsc::Receiver<ClusterEvent> {
        let (sender, events) = mpsc::channel(QUEUE);
        for (id, client) in &self.clients {
            for kind in FOLLOWED {
                let Some(collection) = collection(kind, &self.mesh.root_namespace) else { continue };
                let mut watch = client.watch(collection, tasks);
                let (id, sender) = (id.clone(), sender.clone());
                tasks.spawn("forward", async move {
                    while let Some(event) = watch.recv().await {
                        if sender.send((id.clone(), kind, event)).await.is_err() {
                            return;
                        }
                    }
                });
            }
        }
        events
    }

    /// Reads until everything is there. The own cluster is waited for without end, the others for a while.
    async fn first(&mut self, events: &mut mpsc::Receiver<ClusterEvent>) {
        let patience = Instant::now() + REMOTES;
        while self.missing().next().is_some() {
            let own_is_there = self.missing().all(|id| *id != self.own);
            let event = if own_is_there {
                tokio::time::timeout_at(patience, events.recv()).await
            } else {
                Ok(events.recv().await)
            };
            match event {
                Ok(Some(event)) => self.apply(event),
                Ok(None) => return,
                Err(_) => {
                    let missing: Vec<String> = self.missing().map(ToString::to_string).collect();
                    tracing::warn!(
                        clusters = missing.join(" "),
                        "remote clusters are not synced yet, starting without them"
                    );
                    return;
                }
            }
        }
    }

    /// The clusters that are not read yet.
    fn missing(&self) -> impl Iterator<Item = &ClusterId> {
        self.clusters.iter().filter(|(_, cluster)| !cluster.is_synced()).map(|(id, _)| id)
    }

    fn apply(&mut self, (id, kind, event): ClusterEvent) {
        self.clusters.apply(&id, kind, event);
    }

    fn translate(&mut self) -> Snapshot {
        self.number += 1;
        let mesh = self
            .clusters
            .cluster(&self.own)
            .map_or_else(|| self.mesh.clone(), |own| self.mesh.as_configured(own));
        let views = view::all(&mesh, &self.clusters, &self.own, &self.network);
        let (clusters, number, trust_domain) = (self.clusters.clone(), self.number, mesh.trust_domain);
        Snapshot { clusters, views, number, trust_domain }
    }

    /// Writes addresses into the entries of the own cluster that lack some. A failure is logged, and tried again when
    /// the entry changes.
    fn allocate(&mut self, tasks: &Tasks) {
        let own = self.clusters.cluster(&self.own).filter(|cluster| cluster.is_synced());
        let client = self.clients.iter().find(|(id, _)| *id == self.own);
        let (Some(cluster), Some((_, client)), Some(kind)) = (own, client, Kind::named("ServiceEntry"))
        else {
            return;
        };
        let mut now = BTreeSet::new();
        for Allocation { namespace, name, resource_version, addresses } in vips::allocate(cluster) {
            let key = (namespace.clone(), name.clone(), resource_version.clone());
            let is_new = !self.allocated.contains(&key);
            now.insert(key);
            if !is_new {
                continue;
            }
            let path = format!("{}/status", kind.path(&namespace, &name));
            let patch = json!({
                "metadata": {"resourceVersion": resource_version}, "status": {"addresses": addresses},
            });
            let client = client.clone();
            tasks.spawn("addresses", async move {
                if let Err(error) = client.merge_patch(&path, &patch).await {
                    tracing::warn!(namespace, name, %error, "cannot write a ServiceEntry's virtual addresses");
                }
            });
        }
        self.allocated = now;
    }

    /// Writes the root certificate into namespaces that are new since the last time. A failure is logged, and tried
    /// again when the namespace changes.
    fn publish_roots(&mut self, tasks: &Tasks) {
        for (id, client) in &self.clients {
            let Some(cluster) = self.clusters.cluster(id) else {
                continue;
            };
            let living = cluster.of("Namespace").filter(|namespace| !object::is_deleting(namespace));
            let names: BTreeSet<String> =
                living.map(|namespace| object::name(namespace).to_owned()).collect();
            self.published.retain(|(cluster, name)| cluster != id || names.contains(name));
            for name in names {
                if !self.published.insert((id.clone(), name.clone())) {
                    continue;
                }
                let map = json!({
                    "apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": {"name": ROOT_MAP, "namespace": name, "labels": {"istio.io/config": "true"}},
                    "data": {"root-cert.pem": self.roots},
                });
                let client = client.clone();
                tasks.spawn("roots", async move {
                    if let Err(error) = client.apply(&map).await {
                        tracing::warn!(namespace = name, %error, "cannot write the namespace's root certificate");
                    }
                });
            }
        }
    }
}
