//! An upgrade: a new agent serves the same pod beside the old one, which then receives SIGTERM. Connections made all the
//! while succeed, for the pod as client and as server, and the old agent exits by itself.

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use isthmus_kit::process::Process;
use isthmus_kit::two_nodes::{Agent, TwoNodes, VIP};
use isthmus_kit::zds::{ZdsPeer, ZdsPod, ZdsServer};
use isthmus_kit::{lab, wait};
use isthmus_node::rules::{self, PodRules};
use isthmus_rt::task::compute;
use isthmus_sys::socket::Sockets;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Fewest connections in each phase of the switch.
const ENOUGH: usize = 100;
const PATIENCE: Duration = Duration::from_secs(60);
const WORDS: &[u8] = b"as if nothing had happened";

fn main() -> std::process::ExitCode {
    lab::main_with_programs(&lab::tests![
        connections_succeed_while_the_clients_agent_is_replaced,
        connections_succeed_while_the_servers_agent_is_replaced,
        quitquitquit_drains_and_a_second_sigint_exits_at_once
    ])
}

fn connections_succeed_while_the_clients_agent_is_replaced() -> anyhow::Result<()> {
    replaced(0)
}

fn connections_succeed_while_the_servers_agent_is_replaced() -> anyhow::Result<()> {
    replaced(1)
}

/// A pod's agent; the node role's side of its ZDS connection keeps it serving.
struct Served {
    agent: Agent,
    _zds: ZdsPeer,
}

/// Starts an agent on a node and makes it serve the node's pod.
async fn served(lab: &TwoNodes, zds: &mut ZdsServer, at: usize) -> anyhow::Result<Served> {
    let agent = lab.agent(at, &lab.local(""))?;
    let peer = zds.accept().await?;
    let (pod, name) = if at == 0 { (&lab.client, "client") } else { (&lab.server, "server") };
    let info = ZdsPod { uid: name, name, namespace: "ns", service_account: name };
    let refused = peer.add(&info, pod.netns.fd()).await?;
    ensure!(refused.is_none(), "add: {refused:?}");
    ensure!(peer.snapshot_sent().await?.is_none(), "snapshot_sent");
    Ok(Served { agent, _zds: peer })
}

fn replaced(at: usize) -> anyhow::Result<()> {
    let mut lab = TwoNodes::new()?;
    lab::block_on(async {
        let app = SocketAddr::new(lab.server.v4.into(), 8080);
        lab::echo(&lab.server.sockets(), app, &lab.tasks)?;
        let rules = PodRules { dns_capture: false, ..PodRules::default() };
        rules::apply_pod(&lab.client.netns, &rules)?;
        rules::apply_pod(&lab.server.netns, &rules)?;
        let mut sockets = [ZdsServer::bind(&lab.socket(0))?, ZdsServer::bind(&lab.socket(1))?];
        let old = served(&lab, &mut sockets[at], at).await?;
        let other = served(&lab, &mut sockets[1 - at], 1 - at).await?;
        // Two agents of one node are two pods: each has a network namespace of its own.
        let node = lab.lan.host()?;
        let _old_node = std::mem::replace(&mut lab.nodes[at], node);

        let (made, done) = (Cell::new(0), Cell::new(false));
        let client = async || {
            while !done.get() {
                let answer = lab.exchange(&lab.client, VIP, WORDS).await;
                let answer = answer.with_context(|| format!("connection {}", made.get()))?;
                ensure!(answer == WORDS, "connection {} brought {} bytes", made.get(), answer.len());
                made.set(made.get() + 1);
            }
            Ok(())
        };
        let more = async || {
            let goal = made.get() + ENOUGH;
            let reached = async || (made.get() >= goal).then_some(());
            wait::within(PATIENCE, reached).await.context("too few connections")
        };
        let switch = async {
            more().await?;
            let new = served(&lab, &mut sockets[at], at).await?;
            more().await?;
            let log = compute("stop", move || old.agent.stop()).await.context("stop panicked")??;
            ensure!(log.contains("draining"), "{log}");
            more().await?;
            done.set(true);
            Ok(new)
        };
        let (new, ..) = tokio::try_join!(switch, client(), client(), client(), client())?;
        let log = new.agent.stop()?;
        ensure!(log.contains("connection complete"), "no connection through the new agent:\n{log}");
        other.agent.stop()?;
        Ok(())
    })
}

/// An open connection holds up the drain, whose deadline is far beyond this test's timeout.
fn quitquitquit_drains_and_a_second_sigint_exits_at_once() -> anyhow::Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        let app = SocketAddr::new(lab.server.v4.into(), 8080);
        lab::echo(&lab.server.sockets(), app, &lab.tasks)?;
        let rules = PodRules { dns_capture: false, ..PodRules::default() };
        rules::apply_pod(&lab.server.netns, &rules)?;
        let mut zds = ZdsServer::bind(&lab.socket(1))?;
        let (local, socket) = (lab.local(""), lab.socket(1));
        let env = [
            ("FAKE_CA", "true"),
            ("LOCAL_XDS", local.as_str()),
            ("NETWORK", "net1"),
            ("NODE_NAME", "n1"),
            ("INPOD_UDS", socket.to_str().context("path")?),
            ("CONNECTION_TERMINATION_DEADLINE", "1h"),
        ];
        let agent = Process::start(&lab.nodes[1].netns, "isthmus", &["proxy", "ztunnel"], &env, "")?;
        let peer = zds.accept().await?;
        let info = ZdsPod { uid: "server", name: "server", namespace: "ns", service_account: "server" };
        ensure!(peer.add(&info, lab.server.netns.fd()).await?.is_none(), "add");
        ensure!(peer.snapshot_sent().await?.is_none(), "snapshot_sent");
        let mut open = lab.outsider.sockets().connect(app, None, Duration::from_secs(10)).await?;
        open.write_all(b"x").await?;
        open.read_exact(&mut [0]).await?;

        let admin = SocketAddr::from(([127, 0, 0, 1], 15000));
        let stream = Sockets::in_netns(lab.nodes[1].netns.clone());
        let mut stream = stream.connect(admin, None, Duration::from_secs(10)).await?;
        stream
            .write_all(b"POST /quitquitquit HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        ensure!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("shutdown now\n"), "{answer}");
        agent.line(&["draining", "quitquitquit"]).await?;
        open.write_all(b"y").await?;
        open.read_exact(&mut [0]).await.context("a drain must leave open connections alone")?;
        agent.signal(Signal::SIGINT)?;
        let ended = agent.ended().await?;
        ensure!(ended.status.success(), "{ended:?}");
        ensure!(ended.lines.iter().any(|line| line.text.contains("SIGINT while draining")), "{ended:?}");
        Ok(())
    })
}
