//! The kubelet stand-in of one node: watches the node's pods, makes their sandboxes through the CNI chain, runs and
//! probes their programs, reports their status. It runs in the node's network namespace and its probes come from there.
//!
//! It knows no mesh: what the CNI chain does to a sandbox is the chain's business.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use isthmus_rt::task::Tasks;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use tokio::sync::watch;

use crate::program::OWN;
use playground_k8s::client::{Client, Collection, Event};
use playground_k8s::manifest::Kind;

mod cni;
mod container;
mod pod;
mod probe;
mod processes;
mod program;
mod record;
mod sandbox;
mod spec;
mod volumes;

pub use record::Record;
use spec::PodExt as _;

/// Where a kubelet runs.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Name of the cluster.
    #[arg(long)]
    cluster: String,
    /// Name of the node.
    #[arg(long)]
    node: String,
    /// The node's address.
    #[arg(long)]
    address: Ipv4Addr,
    /// The cluster's DNS server, for the pods' resolv.conf.
    #[arg(long)]
    dns: Ipv4Addr,
    /// Folder of `isthmus`.
    #[arg(long)]
    binaries: PathBuf,
    /// What runs as the agent, instead of `isthmus`.
    #[arg(long)]
    agent_program: Option<PathBuf>,
    /// Folder of the CNI plugins.
    #[arg(long)]
    cni_bin: PathBuf,
    /// The CNI configuration list.
    #[arg(long)]
    cni_config: PathBuf,
    /// The API server.
    #[arg(long)]
    kubeconfig: PathBuf,
}

impl Options {
    /// Name of the cluster.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }
}

/// Where a kubelet keeps its files.
#[derive(Debug, Clone)]
pub struct Folders {
    /// The cluster's pods: their records and their working folders.
    pub pods: PathBuf,
    /// The cluster's logs: the output of pods.
    pub logs: PathBuf,
    /// The mount that holds the pods' network namespaces.
    pub netns: PathBuf,
}

impl Folders {
    /// The pods' processes as a host's `/proc` shows them, inside of the folder that pods do not see.
    #[must_use]
    pub fn processes(netns: &Path) -> PathBuf {
        netns.join("proc")
    }
}

/// What all pods of the node share.
#[derive(Debug)]
struct Node {
    options: Options,
    folders: Folders,
    exe: PathBuf,
    client: Client,
    chain: cni::Chain,
}

impl Node {
    fn programs(&self) -> program::Programs<'_> {
        let Options { binaries, agent_program, .. } = &self.options;
        program::Programs { own: &self.exe, bin: binaries, agent: agent_program.as_deref() }
    }
}

/// Runs for ever.
pub async fn run(folders: Folders, options: Options) -> anyhow::Result<()> {
    // The host's probe rule is for the process of this name.
    nix::sys::prctl::set_name(c"kubelet").context("cannot take the name kubelet")?;
    let node = Node {
        exe: OWN.into(),
        client: Client::from_kubeconfig(&options.kubeconfig).await?,
        chain: cni::Chain::read(&options.cni_config, &options.cni_bin)?,
        folders,
        options,
    };
    let tasks = Tasks::new("kubelet");
    let of_node = Collection {
        fields: Some(format!("spec.nodeName={}", node.options.node)),
        ..Collection::from(Kind::known("Pod")?)
    };
    let mut events = node.client.watch(of_node, &tasks);
    let mut pods = Pods { node: std::sync::Arc::new(node), tasks, workers: HashMap::new() };
    while let Some(event) = events.recv().await {
        match event {
            Event::Applied(object) => pods.applied(&object),
            Event::Deleted(object) => pods.deleted(&object),
            Event::Synced => {}
        }
    }
    anyhow::bail!("the watch of the node's pods ended")
}

/// The pods of the node, each with a task that owns all of it.
struct Pods {
    node: std::sync::Arc<Node>,
    tasks: Tasks,
    workers: HashMap<String, watch::Sender<Option<Pod>>>,
}

impl Pods {
    fn applied(&mut self, object: &Value) {
        let pod: Pod = match serde_json::from_value(object.clone()) {
            Ok(pod) => pod,
            Err(error) => {
                tracing::error!(%error, pod = %object["metadata"]["name"], "ignoring a pod that cannot be read");
                return;
            }
        };
        self.workers.retain(|_, wanted| !wanted.is_closed());
        let uid = pod.uid().to_owned();
        if let Some(wanted) = self.workers.get(&uid) {
            wanted.send_replace(Some(pod));
            return;
        }
        let (wanted, updates) = watch::channel(Some(pod.clone()));
        self.workers.insert(uid, wanted);
        self.tasks.spawn("pod", pod::run(std::sync::Arc::clone(&self.node), pod, updates));
    }

    /// The object was removed before the pod ended, so it has no grace period left: stop the pod at once.
    fn deleted(&mut self, object: &Value) {
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        if let Some(wanted) = self.workers.remove(uid) {
            wanted.send_replace(None);
        }
    }
}
