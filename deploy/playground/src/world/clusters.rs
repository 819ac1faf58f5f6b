//! Starting the clusters in order, each step with a bounded wait that names what is missing.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, bail};

use super::process::Process;
use super::progress::Progress;
use super::{Options, ready};
use crate::binaries::AgentProgram;
use crate::dir::Dir;
use crate::objects;
use crate::pki::Files;
use crate::plan::{API_PORT, Cluster, Node, Plan};
use crate::topology::Namespaces;
use playground_k8s::client::Client;
use playground_k8s::manifest::{self, object};

/// How long each step may take.
const API: Duration = Duration::from_secs(15);
const PODS: Duration = Duration::from_secs(45);
const MESH: Duration = Duration::from_secs(30);

/// The clusters as they run.
#[derive(Debug)]
pub(super) struct Clusters<'a> {
    pub(super) dir: &'a Dir,
    pub(super) plan: &'a Plan,
    pub(super) namespaces: Namespaces,
    pub(super) clients: BTreeMap<String, Client>,
    /// Our own number outside of the world.
    pub(super) outer_pid: i32,
    processes: Vec<Process>,
}

impl<'a> Clusters<'a> {
    /// Nothing runs yet.
    pub(super) async fn new(
        dir: &'a Dir,
        plan: &'a Plan,
        namespaces: Namespaces,
        outer_pid: i32,
    ) -> anyhow::Result<Self> {
        let mut clients = BTreeMap::new();
        for cluster in &plan.clusters {
            let client = Client::from_kubeconfig(&dir.kubeconfig(&cluster.name)).await?;
            clients.insert(cluster.name.clone(), client);
        }
        Ok(Self { dir, plan, namespaces, clients, outer_pid, processes: Vec::new() })
    }

    /// Starts everything and waits until it works.
    pub(super) async fn start(&mut self, options: &Options, progress: &Progress) -> anyhow::Result<()> {
        progress.stage("API servers", "one per cluster");
        for cluster in &self.plan.clusters {
            self.start_api(cluster)?;
        }
        self.until("API servers", API, ready::apis).await?;
        progress.stage("nodes", "kubelets and service proxies");
        for cluster in &self.plan.clusters {
            let founded = self.found(cluster).await;
            founded.with_context(|| format!("objects of cluster {}", cluster.name))?;
            for node in &cluster.nodes {
                self.start_node(cluster, node, options)?;
            }
        }
        progress.stage("control planes", "istiods and name servers");
        self.until("control planes", PODS, ready::pods).await?;
        progress.stage("pods", &format!("agents, gateways, and {}", options.manifests.display()));
        for cluster in &self.plan.clusters {
            let applied = self.apply(cluster, options).await;
            applied.with_context(|| format!("objects of cluster {}", cluster.name))?;
        }
        self.until("pods", PODS, ready::pods).await?;
        progress.stage("mesh", "every agent knows every workload");
        self.until("mesh", MESH, ready::mesh).await
    }

    /// The client of a cluster.
    pub(super) fn client(&self, cluster: &Cluster) -> anyhow::Result<&Client> {
        self.clients.get(&cluster.name).with_context(|| format!("there is no cluster {}", cluster.name))
    }

    /// The name of the first of our processes that ends.
    pub(super) async fn first_gone(&mut self) -> String {
        let waits = self.processes.iter_mut().map(|process| {
            Box::pin(async move {
                process.wait().await;
                process.name.clone()
            })
        });
        futures_util::future::select_all(waits).await.0
    }

    fn start_api(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        let files = Files::of(self.dir, &cluster.name);
        let args = [
            ("--cluster", cluster.name.clone()),
            ("--listen", format!("0.0.0.0:{API_PORT}")),
            ("--cert", text(&files.api.0)),
            ("--key", text(&files.api.1)),
            ("--client-ca", text(&files.api_ca)),
            ("--service-cidr", cluster.services.to_string()),
            ("--admin-token-file", text(&self.dir.admin_token(&cluster.name))),
            ("--load-balancer", format!("{}={}", objects::gateway_name(), cluster.gateway)),
            ("--advertise", format!("{}:{API_PORT}", cluster.api)),
        ];
        let netns = self.namespaces.api.get(&cluster.name).context("no namespace")?.clone();
        self.spawn(&netns, cluster, "apiserver", "apiserver", &args)
    }

    fn start_node(&mut self, cluster: &Cluster, node: &Node, options: &Options) -> anyhow::Result<()> {
        let kubeconfig = text(&self.dir.kubeconfig(&cluster.name));
        let mut proxy = vec![("--kubeconfig", kubeconfig.clone())];
        proxy.extend(node.announces.map(|address| ("--announce", address.to_string())));
        let netns = self.namespaces.proxies.get(&node.name).context("no namespace")?.clone();
        self.spawn(&netns, cluster, &format!("kube-proxy-{}", node.name), "kube-proxy", &proxy)?;
        let mut kubelet = vec![
            ("--cluster", cluster.name.clone()),
            ("--node", node.name.clone()),
            ("--address", node.address.to_string()),
            ("--dns", cluster.dns().to_string()),
            ("--binaries", text(&options.binaries)),
            ("--cni-bin", text(&self.dir.cni_bin())),
            ("--cni-config", text(&self.dir.node(&node.name).join("cni.conflist"))),
            ("--kubeconfig", kubeconfig),
        ];
        let agent = AgentProgram::of(&options.agent_program, &cluster.name, &node.name);
        kubelet.extend(agent.map(|program| ("--agent-program", text(&program.path))));
        let netns = self.namespaces.nodes.get(&node.name).context("no namespace")?.clone();
        self.spawn(&netns, cluster, &format!("kubelet-{}", node.name), "kubelet", &kubelet)
    }

    fn spawn(
        &mut self,
        netns: &isthmus_sys::netns::Netns,
        cluster: &Cluster,
        name: &str,
        command: &str,
        flags: &[(&str, String)],
    ) -> anyhow::Result<()> {
        let mut args = vec![command.to_owned(), "--dir".to_owned(), text(self.dir.path())];
        args.extend(flags.iter().flat_map(|(flag, value)| [(*flag).to_owned(), value.clone()]));
        let log = self.dir.log(&cluster.name, name);
        self.processes.push(Process::start(netns, format!("{}/{name}", cluster.name), log, &args)?);
        Ok(())
    }

    /// What the cluster has before anything of the mesh is put into it.
    async fn found(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let client = self.client(cluster)?;
        let root = fs::read_to_string(Files::of(self.dir, &cluster.name).root)?;
        let base = objects::base(self.plan, cluster, &root).into_iter();
        for object in base.chain(objects::foundations(self.dir, self.plan, cluster)) {
            client.apply(&object).await?;
        }
        Ok(())
    }

    /// The data plane, and everything that the manifests say.
    async fn apply(&self, cluster: &Cluster, options: &Options) -> anyhow::Result<()> {
        let client = self.client(cluster)?;
        for object in objects::data_plane(self.dir, cluster) {
            client.apply(&object).await?;
        }
        let istiod = client.get("/api/v1/namespaces/istio-system/services/istiod").await?.unwrap_or_default();
        let istiod = object::text(&istiod, "/spec/clusterIP");
        let place = objects::gateway::Place { dir: self.dir, plan: self.plan, cluster, istiod: Some(istiod) };
        let all = manifest::for_cluster(&options.manifests, &cluster.name)?;
        for object in &all {
            client.apply(object).await?;
            for part in objects::gateway::expand(place, object, &all) {
                client.apply(&part).await?;
            }
        }
        Ok(())
    }

    /// Asks until nothing is missing; at the end of the time says what is, with the last lines of its log.
    async fn until<F>(&mut self, what: &str, time: Duration, missing: F) -> anyhow::Result<()>
    where
        F: AsyncFn(&Clusters<'_>) -> anyhow::Result<Option<ready::Missing>>,
    {
        let deadline = tokio::time::Instant::now() + time;
        loop {
            for process in &mut self.processes {
                if let Some(status) = process.ended() {
                    bail!("{} ended ({status}){}", process.name, process.tail());
                }
            }
            let Some(missing) = missing(self).await? else { return Ok(()) };
            if tokio::time::Instant::now() > deadline {
                bail!("{what}: not ready after {time:?}: {missing}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn text(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}
