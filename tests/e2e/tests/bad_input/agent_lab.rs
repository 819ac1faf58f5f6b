//! A node whose agent serves two pods that reach each other through it, with a scripted node role on its ZDS socket.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use isthmus_kit::lab::{self, Host, Lan};
use isthmus_kit::probe::{self, Answer};
use isthmus_kit::process::Process;
use isthmus_kit::wait::until;
use isthmus_kit::zds::{ZdsPeer, ZdsPod, ZdsServer};
use isthmus_node::rules::{self, PodRules};
use isthmus_rt::task::Tasks;
use isthmus_sys::netns::Netns;
use serde_json::Value;
use tempfile::TempDir;

const READY: &str = "127.0.0.1:15021";
const ADMIN: &str = "127.0.0.1:15000";
const STATS: &str = "127.0.0.1:15020";

/// The node; the agent runs in the test's own namespace, where a scripted control plane can be reached on loopback.
pub(crate) struct AgentLab {
    /// Keeps the pods' wire.
    _lan: Lan,
    own: Netns,
    pub(crate) client: Host,
    pub(crate) server: Host,
    _tasks: Tasks,
    pub(crate) dir: TempDir,
}

impl AgentLab {
    /// Both pods are captured and the server's application echoes; no agent runs yet.
    pub(crate) fn new() -> Result<Self> {
        let lan = Lan::new()?;
        let (client, server, tasks) = (lan.host()?, lan.host()?, Tasks::new("lab"));
        lab::echo(&server.sockets(), SocketAddr::new(server.v4.into(), 8080), &tasks)?;
        for pod in [&client, &server] {
            rules::apply_pod(&pod.netns, &PodRules { dns_capture: false, ..PodRules::default() })?;
        }
        let dir = tempfile::tempdir()?;
        Ok(Self { _lan: lan, own: Netns::current()?, client, server, _tasks: tasks, dir })
    }

    /// A path in the test's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The local file with both pods.
    pub(crate) fn local(&self) -> String {
        let pod = |name: &str, pod: &Host| {
            format!(
                "- {{uid: c1//Pod/ns/{name}, name: {name}, namespace: ns, serviceAccount: {name}, network: net1, \
                 workloadIps: [{}], protocol: HBONE, node: n0, services: {{}}}}\n",
                pod.v4
            )
        };
        format!("workloads:\n{}{}", pod("client", &self.client), pod("server", &self.server))
    }

    /// Starts the agent with both pods in its local file, and what a test adds to its environment.
    pub(crate) fn agent(&self, more: &[(&str, &str)]) -> Result<Process> {
        let (local, zds) = (self.local(), self.path("zds.sock").display().to_string());
        let mut env = vec![
            ("LOCAL_XDS", local.as_str()),
            ("NETWORK", "net1"),
            ("NODE_NAME", "n0"),
            ("INPOD_UDS", &zds),
            // As Helm charts set it.
            ("RUST_BACKTRACE", "1"),
        ];
        env.extend(more);
        Process::start(&self.own, "isthmus", &["proxy", "ztunnel"], &env, "")
    }

    /// The scripted node role.
    pub(crate) fn node(&self) -> Result<ZdsServer> {
        ZdsServer::bind(&self.path("zds.sock"))
    }

    /// Waits for the agent and adds both pods.
    pub(crate) async fn hand_over(&self, node: &mut ZdsServer) -> Result<ZdsPeer> {
        let agent = node.accept().await?;
        for (name, pod) in [("client", &self.client), ("server", &self.server)] {
            let info = ZdsPod { uid: name, name, namespace: "ns", service_account: name };
            let refused = agent.add(&info, pod.netns.fd()).await?;
            ensure!(refused.is_none(), "{name}: {refused:?}");
        }
        ensure!(agent.snapshot_sent().await?.is_none(), "the end of the snapshot was refused");
        Ok(agent)
    }

    /// Checks that the pods reach each other, which they do only through the agent.
    pub(crate) async fn works(&self) -> Result<()> {
        let to = SocketAddr::new(self.server.v4.into(), 8080);
        let stream = self.client.sockets().connect(to, None, Duration::from_secs(10)).await?;
        ensure!(lab::exchange(stream, b"through").await? == b"through", "the echo differs");
        Ok(())
    }

    /// The answer of the readiness endpoint.
    pub(crate) async fn readiness(&self) -> Result<Answer> {
        probe::get(&self.own, READY, "/healthz/ready").await
    }

    /// Waits until the agent is ready.
    pub(crate) async fn ready(&self) -> Result<()> {
        until("ready", async || self.readiness().await.is_ok_and(|answer| answer.status == 200)).await
    }

    /// The agent's config dump.
    pub(crate) async fn dump(&self) -> Result<Value> {
        Ok(serde_json::from_str(&probe::get(&self.own, ADMIN, "/config_dump").await?.body)?)
    }

    /// The sum of a metric over its labels.
    pub(crate) async fn metric(&self, family: &str) -> u64 {
        let Ok(answer) = probe::get(&self.own, STATS, "/metrics").await else { return 0 };
        let of = |line: &&str| line.starts_with(family);
        answer.body.lines().filter(of).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }
}

/// The warnings and errors in a log.
pub(crate) fn complaints(process: &Process) -> Vec<String> {
    let serious = |text: &String| text.contains("\twarn\t") || text.contains("\terror\t");
    process.lines().into_iter().map(|line| line.text).filter(serious).collect()
}

/// The number of warnings and errors that contain all of these.
pub(crate) fn count(process: &Process, parts: &[&str]) -> usize {
    complaints(process).iter().filter(|line| parts.iter().all(|part| line.contains(part))).count()
}
