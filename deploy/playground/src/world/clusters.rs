//! The clusters of a world: their clients, and the processes and objects that they consist of. When each of them is
//! started, and what has to be ready before, is not decided here.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, bail};

use super::Options;
use super::process::Process;
use crate::binaries::AgentProgram;
use crate::dir::Dir;
use crate::objects;
use crate::pki::Files;
use crate::plan::{API_PORT, Cluster, Node, Plan};
use crate::topology::Namespaces;
use playground_k8s::client::Client;
use playground_k8s::manifest;

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

    /// Fails when one of the processes has ended, with the last lines of its log.
    pub(super) fn check_processes(&mut self) -> anyhow::Result<()> {
        for process in &mut self.processes {
            if let Some(status) = process.ended() {
                bail!("{} ended ({status}){}", process.name, process.tail());
            }
        }
        Ok(())
    }

    /// Starts a cluster's API server.
    pub(super) fn start_api(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
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

    /// Starts the kubelet and the service proxy of a node.
    pub(super) fn start_node(
        &mut self,
        cluster: &Cluster,
        node: &Node,
        options: &Options,
    ) -> anyhow::Result<()> {
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

    /// Creates what a cluster has before anything of the mesh is put into it.
    pub(super) async fn create_base(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let client = self.client(cluster)?;
        let root = fs::read_to_string(Files::of(self.dir, &cluster.name).root)?;
        let base = objects::base(self.plan, cluster, &root).into_iter();
        for object in base.chain(objects::foundations(self.dir, self.plan, cluster)) {
            client.apply(&object).await?;
        }
        Ok(())
    }

    /// Creates the data plane, and every object of the manifests.
    pub(super) async fn apply_manifests(&self, cluster: &Cluster, options: &Options) -> anyhow::Result<()> {
        let client = self.client(cluster)?;
        for object in objects::data_plane(self.dir, cluster) {
            client.apply(&object).await?;
        }
        let context = objects::gateway::GatewayContext { dir: self.dir, cluster };
        let all = manifest::for_cluster(&options.manifests, &cluster.name)?;
        for object in &all {
            client.apply(object).await?;
            for part in objects::gateway::expand(context, object) {
                client.apply(&part).await?;
            }
        }
        Ok(())
    }
}

fn text(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}
