//! Roads from a client to a server on one wire: direct, or through agents, which must be transparent. The agents are the
//! real program, with the mesh in a local file and a scripted node role.

use std::fmt;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::kube::{self, Api};
use isthmus_kit::lab::{Host, Lan};
use isthmus_kit::process::{self, Line, Process};
use isthmus_kit::zds::{ZdsPeer, ZdsPod, ZdsServer};
use isthmus_kit::{probe, wait};
use isthmus_node::rules::{self, PodRules};
use isthmus_rt::task::Tasks;
use isthmus_sys::netns::Netns;
use isthmus_sys::socket::Transparent;
use tempfile::TempDir;

use crate::script::{PORTS, Road};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const HOSTNAME: &str = "echo.ns.svc.cluster.local";
const SERVER_IDENTITY: &str = "spiffe://cluster.local/ns/ns/sa/server";
const API: u16 = 6443;
const SOON: Duration = Duration::from_secs(20);

/// What is between client and server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Between {
    /// The client's agent, which knows no such destination, and the server's, which sees a client without an identity.
    Plaintext,
    /// Both agents and a tunnel between them.
    Hbone,
    /// Both agents, in two networks, and the gateway of the server's.
    DoubleHbone,
}

/// A wire with a direct road and one through agents.
pub(crate) struct RoadLab {
    pub(crate) direct: Road,
    pub(crate) road: Road,
    /// A pod of the mesh according to the agents' file, without a listener until a test opens one.
    pub(crate) dead: Host,
    agents: Vec<Process>,
    _tasks: Tasks,
    _zds: Vec<ZdsPeer>,
    _lan: Lan,
    _dir: TempDir,
}

impl RoadLab {
    /// Two hosts without agents, and two with. Must be called inside a runtime.
    pub(crate) async fn new(between: Between) -> Result<Self> {
        let lan = Lan::new()?;
        let (near, far) = (lan.host()?, lan.host()?);
        let direct =
            Road::new("direct", (&near.netns, &near.sockets()), (&far.netns, &far.sockets()), far.v4.into())
                .seen_as(near.v4.into());
        let scene = Scene {
            between,
            nodes: [lan.host()?, lan.host()?],
            client: lan.host()?,
            server: lan.host()?,
            gateway: lan.host()?,
            dead: lan.host()?,
            dir: tempfile::tempdir()?,
        };
        let tasks = Tasks::new("lab");
        let (mut agents, mut zds) = (Vec::new(), Vec::new());
        if between == Between::DoubleHbone {
            agents.push(scene.gateway(&lan, &tasks).await?);
        }
        for at in 0..2 {
            let (agent, peer) = scene.agent(at).await.with_context(|| format!("agent {at}"))?;
            agents.push(agent);
            zds.push(peer);
        }
        let Scene { client, server, dead, dir, .. } = scene;
        let to: IpAddr = if between == Between::DoubleHbone { VIP.into() } else { server.v4.into() };
        let ends = ((&client.netns, &client.sockets()), (&server.netns, &server.sockets()));
        let road = Road::new(between.name(), ends.0, ends.1, server.v4.into()).to(to);
        // Of a client in another network the pod sees the gateway.
        let road = if between == Between::DoubleHbone { road } else { road.seen_as(client.v4.into()) };
        Ok(Self { direct, road, dead, agents, _tasks: tasks, _zds: zds, _lan: lan, _dir: dir })
    }
}

impl RoadLab {
    /// Passes on the result of a test; a failure with the logs of the agents.
    pub(crate) fn judged(&self, done: Result<()>) -> Result<()> {
        if done.is_err() {
            let failed = |line: &&Line| line.text.contains("error");
            for (at, agent) in self.agents.iter().enumerate() {
                let lines = agent.lines();
                let last: Vec<_> = lines.iter().filter(failed).rev().take(10).collect();
                last.iter().rev().for_each(|line| println!("process {at}: {}", line.text));
            }
        }
        done
    }
}

impl Between {
    fn name(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext passthrough",
            Self::Hbone => "hbone",
            Self::DoubleHbone => "double hbone",
        }
    }
}

impl fmt::Display for Between {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The hosts and their places in the networks.
struct Scene {
    between: Between,
    nodes: [Host; 2],
    client: Host,
    server: Host,
    gateway: Host,
    dead: Host,
    dir: TempDir,
}

impl Scene {
    /// The network of each side.
    fn network(&self, at: usize) -> &'static str {
        if at == 1 && self.between == Between::DoubleHbone { "net2" } else { "net1" }
    }

    /// An agent that serves its pod.
    async fn agent(&self, at: usize) -> Result<(Process, ZdsPeer)> {
        let (socket, local) = (self.dir.path().join(format!("zds{at}")), self.local(at));
        let mut zds = ZdsServer::bind(&socket)?;
        let node = format!("n{at}");
        let env = [
            ("FAKE_CA", "true"),
            ("LOCAL_XDS", local.as_str()),
            ("NETWORK", self.network(at)),
            ("NODE_NAME", node.as_str()),
            ("INPOD_UDS", socket.to_str().context("path")?),
            ("RUST_LOG", "info"),
            ("ZTUNNEL_WORKER_THREADS", process::threads(at)),
        ];
        let agent = Process::start(&self.nodes[at].netns, "isthmus", &["proxy", "ztunnel"], &env, "")?;
        let peer = zds.accept().await?;
        let (pod, name) = if at == 0 { (&self.client, "client") } else { (&self.server, "server") };
        enrol(&pod.netns)?;
        let info = ZdsPod { uid: name, name, namespace: "ns", service_account: name };
        let refused = peer.add(&info, pod.netns.fd()).await?;
        ensure!(refused.is_none(), "add: {refused:?}");
        ensure!(peer.snapshot_sent().await?.is_none(), "snapshot_sent");
        Ok((agent, peer))
    }

    /// The local file of one side's agent.
    fn local(&self, at: usize) -> String {
        let client = pod("client", self.client.v4, "net1", "{}");
        let dead = pod("dead", self.dead.v4, "net1", "{}");
        let server = |network| pod("server", self.server.v4, network, &endpoint());
        match (self.between, at) {
            (Between::Plaintext, 0) => format!("workloads:\n{client}"),
            (Between::Plaintext, _) => format!("workloads:\n{}", pod("server", self.server.v4, "net1", "{}")),
            (Between::Hbone, _) => {
                format!("workloads:\n{client}{dead}{}services:\n{}", server("net1"), service("net1"))
            }
            (Between::DoubleHbone, 0) => {
                let gateway = self.gateway.v4;
                format!(
                    "workloads:\n{client}\
                     - {{uid: far, name: far, namespace: ns, network: net2, clusterId: c2, workloadIps: [], \
                     protocol: HBONE, services: {}, \
                     networkGateway: {{destination: net2/{gateway}, hboneMtlsPort: 15008}}}}\n\
                     - {{uid: gateway, name: gateway, namespace: istio-system, serviceAccount: eastwest, \
                     network: net2, workloadIps: [{gateway}], services: {{}}}}\nservices:\n{}",
                    endpoint(),
                    service("net1"),
                )
            }
            (Between::DoubleHbone, _) => {
                format!("workloads:\n{}services:\n{}", server("net2"), service("net2"))
            }
        }
    }

    /// The gateway of the server's network, ready.
    async fn gateway(&self, lan: &Lan, tasks: &Tasks) -> Result<Process> {
        let api = Api::default();
        api.put("namespaces", kube::namespace("ns", &[]));
        api.put("services", kube::service("ns", "echo", &[("istio.io/global", "true")]));
        let address = (lan.v4, API).into();
        let (listener, _) = lan.sockets().listen(address, Transparent::Never)?;
        api.serve(listener, tasks);
        let kubeconfig = self.dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, kube::kubeconfig(&format!("http://{address}")))?;
        let (kubeconfig, local) = (kubeconfig.display().to_string(), self.local(1));
        let env = [
            ("FAKE_CA", "true"),
            ("LOCAL_XDS", local.as_str()),
            ("NETWORK", "net2"),
            ("POD_NAME", "eastwest-1"),
            ("POD_NAMESPACE", "istio-system"),
            ("SERVICE_ACCOUNT", "eastwest"),
            ("KUBECONFIG", &kubeconfig),
            ("ZTUNNEL_WORKER_THREADS", process::threads(1)),
        ];
        let gateway = Process::start(&self.gateway.netns, "isthmus", &["gateway"], &env, "")?;
        gateway.line(&["gateway started"]).await?;
        let ready = async || {
            let answer = probe::get(&self.gateway.netns, "127.0.0.1:15021", "/healthz/ready").await;
            answer.map(|answer| (answer.status == 200).then_some(())).transpose()
        };
        wait::within(SOON, ready).await.context("the gateway does not become ready")??;
        Ok(gateway)
    }
}

/// The packet rules that the node role gives a pod.
fn enrol(netns: &Arc<Netns>) -> Result<()> {
    Ok(rules::apply_pod(netns, &PodRules { dns_capture: false, ..PodRules::default() })?)
}

fn pod(name: &str, ip: Ipv4Addr, network: &str, services: &str) -> String {
    let node = if name == "client" { "n0" } else { "n1" };
    format!(
        "- {{uid: {network}//Pod/ns/{name}, name: {name}, namespace: ns, serviceAccount: {name}, network: {network}, \
         clusterId: c-{network}, workloadIps: [{ip}], protocol: HBONE, node: {node}, services: {services}}}\n"
    )
}

/// A member of the service.
fn endpoint() -> String {
    format!("{{ns/{HOSTNAME}: {}}}", ports())
}

fn service(network: &str) -> String {
    format!(
        "- {{name: echo, namespace: ns, hostname: {HOSTNAME}, vips: [{network}/{VIP}], ports: {}, \
         subjectAltNames: [\"{SERVER_IDENTITY}\"]}}\n",
        ports()
    )
}

/// Each port of the script leads to itself.
fn ports() -> String {
    let mut all = String::from("{");
    for port in PORTS {
        let _ = write!(all, "{port}: {port}, ");
    }
    all.truncate(all.len() - 2);
    all + "}"
}
