//! The agents of two nodes, and their replacement.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::lab::Host;
use isthmus_kit::process::{self, Process};
use isthmus_kit::two_nodes::TwoNodes;
use isthmus_kit::wait;
use isthmus_kit::zds::{ZdsPeer, ZdsPod, ZdsServer};
use isthmus_node::rules::{self, PodRules};
use isthmus_sys::limits;
use isthmus_sys::socket::Sockets;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Two nodes, whose agents come and go.
pub(crate) struct World {
    pub(crate) lab: TwoNodes,
    zds: [ZdsServer; 2],
    /// Where agents ran that were replaced: two agents of one node are two pods.
    before: Vec<Host>,
    /// What agents that are started from now on have in their local file beside the pods.
    pub(crate) policies: &'static str,
    /// Further variables of agents that are started from now on.
    pub(crate) environment: Vec<(&'static str, &'static str)>,
}

/// A running agent that serves its node's pod.
pub(crate) struct Served {
    pub(crate) process: Process,
    _zds: ZdsPeer,
}

/// What an agent says of its hand-over.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) handed_over: usize,
    #[expect(dead_code, reason = "shown")]
    pause_p99: String,
    #[expect(dead_code, reason = "shown")]
    pause_max: String,
}

impl World {
    /// Must be called inside a runtime.
    pub(crate) fn new() -> Result<Self> {
        limits::raise_nofile()?;
        let lab = TwoNodes::new()?;
        let zds = [lab.socket(0), lab.socket(1)];
        let rules = PodRules { dns_capture: false, ..PodRules::default() };
        rules::apply_pod(&lab.client.netns, &rules)?;
        rules::apply_pod(&lab.server.netns, &rules)?;
        let zds = [ZdsServer::bind(&zds[0])?, ZdsServer::bind(&zds[1])?];
        Ok(Self { lab, zds, before: Vec::new(), policies: "", environment: Vec::new() })
    }

    /// Starts an agent of a node, and waits until its predecessor can hand over to it.
    pub(crate) async fn start(&mut self, at: usize) -> Result<Served> {
        let (local, socket) = (self.lab.local(self.policies), self.lab.socket(at));
        let node = format!("n{at}");
        let mut env = vec![
            ("FAKE_CA", "true"),
            ("LOCAL_XDS", local.as_str()),
            ("NETWORK", "net1"),
            ("NODE_NAME", node.as_str()),
            ("INPOD_UDS", socket.to_str().context("path")?),
            ("ZTUNNEL_WORKER_THREADS", process::threads(at)),
            ("CONNECTION_TERMINATION_DEADLINE", "60s"),
        ];
        env.extend(&self.environment);
        let process = Process::start(&self.lab.nodes[at].netns, "isthmus", &["proxy", "ztunnel"], &env, "")?;
        let zds = self.zds[at].accept().await?;
        let (pod, name) = if at == 0 { (&self.lab.client, "client") } else { (&self.lab.server, "server") };
        let info = ZdsPod { uid: name, name, namespace: "ns", service_account: name };
        let refused = zds.add(&info, pod.netns.fd()).await?;
        ensure!(refused.is_none(), "add: {refused:?}");
        ensure!(zds.snapshot_sent().await?.is_none(), "snapshot_sent");
        process.line(&["ready for the connections of a predecessor"]).await?;
        Ok(Served { process, _zds: zds })
    }

    /// Starts another agent on a node, in a pod of its own.
    pub(crate) async fn start_beside(&mut self, at: usize) -> Result<Served> {
        let node = self.lab.lan.host()?;
        self.before.push(std::mem::replace(&mut self.lab.nodes[at], node));
        self.start(at).await
    }

    /// How many descriptors the agent of a node has open.
    pub(crate) async fn descriptors(&self, at: usize) -> Result<usize> {
        let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, 15020));
        let sockets = Sockets::in_netns(Arc::clone(&self.lab.nodes[at].netns));
        let mut stream = sockets.connect(metrics, None, Duration::from_secs(10)).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let value = text.lines().find_map(|line| line.strip_prefix("process_open_fds "));
        Ok(value.context("no process_open_fds")?.trim().parse()?)
    }

    /// Starts another agent on a node and ends the one before, as an upgrade does.
    pub(crate) async fn replace(&mut self, at: usize, agent: &mut Served) -> Result<Summary> {
        let new = self.start_beside(at).await?;
        let old = std::mem::replace(agent, new);
        old.process.signal(Signal::SIGTERM)?;
        let ended = old.process.ended().await?;
        let log = process::text(&ended.lines);
        ensure!(ended.status.success(), "{}\n{log}", ended.status);
        ensure!(
            !log.contains("connection complete"),
            "the old agent logged a connection that went on:\n{log}"
        );
        Summary::of(&log).with_context(|| format!("no hand-over in\n{log}"))
    }
}

impl Summary {
    fn of(log: &str) -> Option<Self> {
        let line = log.lines().find(|line| line.contains("connections were handed over to the successor"))?;
        let value = |key: &str| {
            let rest = line.split_once(&format!("{key}="))?.1;
            Some(rest.split_whitespace().next()?.trim_matches('"').to_owned())
        };
        Some(Self {
            handed_over: value("handed_over")?.parse().ok()?,
            pause_p99: value("pause_p99")?,
            pause_max: value("pause_max")?,
        })
    }
}

/// Each connection has one line in the log of the last agent, which says how often it was handed over.
pub(crate) async fn check_log(agent: Served, connections: usize, replaced: usize) -> Result<()> {
    let Served { process, _zds } = agent;
    let complete = |text: &str| text.contains("connection complete");
    let count = || process.lines().iter().filter(|line| complete(&line.text)).count();
    let all = async || count() >= connections;
    wait::until("a line of each connection", all).await.with_context(|| format!("{} lines", count()))?;
    let lines = process.stop().await?;
    let lines: Vec<&str> =
        lines.iter().map(|line| line.text.as_str()).filter(|text| complete(text)).collect();
    ensure!(lines.len() == connections, "{} lines of {connections} connections", lines.len());
    for line in lines {
        ensure!(!line.contains("error="), "{line}");
        let handovers = format!("handovers={replaced}");
        ensure!(line.contains(&handovers) == (replaced > 0), "not {handovers}: {line}");
    }
    Ok(())
}
