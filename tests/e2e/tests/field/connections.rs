//! Connections: the client's and the agent's, those that are older than enrolment, and those to a guest in a pod.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::lab::{self, Host};
use isthmus_kit::two_nodes::{TwoNodes, VIP};
use isthmus_kit::wait::until;
use isthmus_sys::netns::Netns;
use isthmus_sys::nft::{
    self, Base, Chain, ChainKind, Family, Hook, Match, Op, Policy, Proto, Rule, Ruleset, Side, Statement,
    Table,
};
use isthmus_sys::{route, sysctl};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::node_lab::{NodeLab, call};
use super::*;

/// Short connections: more than there are ports that the agent prefers.
const SHORT: usize = 4_800;
/// At the same time.
const AT_ONCE: usize = 48;
/// Idle connections besides the one from port 62000.
const IDLE: usize = 100;

/// Connects from a port.
async fn from_port(from: &Host, port: u16, to: SocketAddr) -> Result<TcpStream> {
    let socket = from.netns.run(TcpSocket::new_v4)??;
    setsockopt(&socket.as_fd(), sockopt::ReuseAddr, &true)?;
    socket.bind((from.v4, port).into())?;
    Ok(tokio::time::timeout(SOON, socket.connect(to)).await??)
}

/// Sends bytes and reads their echo.
async fn echoes(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"still here").await?;
    let mut back = [0; 10];
    tokio::time::timeout(SOON, stream.read_exact(&mut back)).await.context("no echo")??;
    ensure!(&back == b"still here");
    Ok(())
}

/// One idle connection from port 62000 and some from other ports, then thousands of short ones from as many ports, in no
/// order, as load balancers choose them. None may hang, and no idle one die.
async fn many_ports(from: &Host, to: SocketAddr) -> Result<()> {
    let mut ports: Vec<u16> = (1_024..=65_535).filter(|port| *port != 62_000).collect();
    fastrand::shuffle(&mut ports);
    let mut idle = vec![from_port(from, 62_000, to).await?];
    for port in ports.drain(..IDLE) {
        idle.push(from_port(from, port, to).await?);
    }
    for stream in &mut idle {
        echoes(stream).await?;
    }
    let (ports, next) = (Arc::new(ports), Arc::new(AtomicUsize::new(0)));
    let failed = Arc::new(Mutex::new(Vec::new()));
    let callers = Tasks::new("callers");
    for _ in 0..AT_ONCE {
        let (ports, next, failed, from) =
            (Arc::clone(&ports), Arc::clone(&next), Arc::clone(&failed), from.clone());
        callers.spawn("caller", async move {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(port) = ports.get(at).filter(|_| at < SHORT) else { return };
                let call = async {
                    let mut stream = from_port(&from, *port, to).await?;
                    echoes(&mut stream).await
                };
                if let Err(error) = call.await {
                    lock(&failed).push(format!("port {port}: {error:#}"));
                }
            }
        });
    }
    callers.wait().await;
    let failed = std::mem::take(&mut *lock(&failed));
    ensure!(failed.is_empty(), "{} of {SHORT} failed: {:?}", failed.len(), &failed[..failed.len().min(9)]);
    for stream in &mut idle {
        let port = stream.local_addr()?.port();
        echoes(stream).await.with_context(|| format!("the idle connection from port {port} has died"))?;
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn c01_ports_of_the_client_and_of_the_agent_do_not_meet() -> Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        let app = SocketAddr::new(lab.server.v4.into(), APP);
        lab::echo(&lab.server.sockets(), app, &lab.tasks)?;
        // Control: outside of the mesh.
        many_ports(&lab.outsider, app).await?;
        let (_agent, _zds) = serve(&lab, 1, &lab.server, "server", &lab.local("")).await?;
        // Another client: the ports of the first one's connections are not free yet.
        let client = lab.lan.host()?;
        many_ports(&client, app).await
    })
}

pub(crate) fn c09_established_connections_outlive_enrolment_and_withdrawal() -> Result<()> {
    lab::block_on(async {
        let lab = NodeLab::new()?;
        lab.serve_api()?;
        let (pod, peer, out) = (lab.running("a")?, lab.running("b")?, lab.running("out")?);
        let server = SocketAddr::new(lab.outsider.v4.into(), APP);
        // Both directions of the pod that is enrolled, to a pod that is enrolled with it too; and those of the control,
        // which stays outside.
        let roads =
            [(&pod.host, server), (&lab.outsider, pod.app()), (&pod.host, peer.app()), (&out.host, server)];
        let mut open = Vec::new();
        let connect = async |open: &mut Vec<TcpStream>| {
            for (from, to) in roads {
                let mut stream = from.sockets().connect(to, None, SOON).await?;
                let mut caller = vec![0; format!("{}\n", from.v4).len()];
                stream.read_exact(&mut caller).await?;
                ensure!(caller == format!("{}\n", from.v4).as_bytes(), "{caller:?}");
                open.push(stream);
            }
            Ok::<_, anyhow::Error>(())
        };
        let all_echo = async |open: &mut Vec<TcpStream>, when: &str| {
            for stream in open {
                let ends = format!("{when}: {:?} to {:?}", stream.local_addr(), stream.peer_addr());
                echoes(stream).await.context(ends)?;
            }
            Ok::<_, anyhow::Error>(())
        };
        connect(&mut open).await?;
        let _node = lab.node().await?;
        let agent = lab.agent(&[("a", &pod), ("b", &peer), ("out", &out)], "")?;
        for round in ["first", "second"] {
            for name in ["a", "b"] {
                lab.mode(name, Some("ambient"));
                lab.api.redirected(&format!("sample/{name}"), Some("enabled")).await?;
            }
            all_echo(&mut open, &format!("{round} enrolment")).await?;
            // New ones are captured, and outlive the withdrawal.
            connect(&mut open).await?;
            let carried = agent_connections(&lab).await?;
            ensure!(carried > 0, "nothing new is captured");
            for name in ["a", "b"] {
                lab.mode(name, None);
                lab.api.redirected(&format!("sample/{name}"), None).await?;
            }
            all_echo(&mut open, &format!("{round} withdrawal")).await?;
            // What begins now goes its own way.
            connect(&mut open).await?;
            all_echo(&mut open, "afterwards").await?;
        }
        // With the last connection that the agent carries, everything of the mesh is gone.
        ensure!(!pod.captured()?.is_empty(), "the rules of carried connections are gone");
        drop(open);
        until("nothing is left in the pods", async || {
            [&pod, &peer].iter().all(|pod| pod.captured().is_ok_and(|captured| captured.is_empty()))
        })
        .await?;
        agent.stop().await?;
        ensure!(call(&pod.host.sockets(), server).await? == format!("{}\n", pod.host.v4));
        Ok(())
    })
}

/// The connections of pods that the agent has open, by its dump.
async fn agent_connections(lab: &NodeLab) -> Result<usize> {
    let dump = lab.dump().await?;
    let pods = dump["workloadState"].as_object().context("no pods")?;
    let count = |pod: &serde_json::Value, direction: &str| {
        pod["connections"][direction].as_array().map_or(0, Vec::len)
    };
    Ok(pods.values().map(|pod| count(pod, "inbound") + count(pod, "outbound")).sum())
}

/// A guest behind a bridge in a pod, to which the pod translates its own port.
fn guest(pod: &Host, port: u16) -> Result<Arc<Netns>> {
    let (netns, address) = (Arc::new(Netns::create()?), Ipv4Addr::new(10, 88, 0, 2));
    route::add_bridge(&pod.netns, "br1")?;
    lab::veth((&pod.netns, "vm0", &[]), (&netns, "eth0", &[format!("{address}/24").parse()?]))?;
    route::set_master(&pod.netns, "vm0", "br1")?;
    route::add_address(&pod.netns, "br1", "10.88.0.1/24".parse()?)?;
    route::add_route(&netns, "0.0.0.0/0".parse()?, Some("10.88.0.1".parse()?), None)?;
    sysctl::write(&pod.netns, "net/ipv4/ip_forward", "1")?;
    let chain = |name: &str, hook| Chain {
        name: name.to_owned(),
        base: Some(Base { kind: ChainKind::Nat, hook, priority: -100, policy: Policy::Accept }),
        rules: vec![Rule::new([
            Statement::Address(Side::Destination, Op::Eq, Match::Net(IpAddr::from(pod.v4).into())),
            Statement::Port(Proto::Tcp, Side::Destination, Op::Eq, port),
            Statement::Dnat(address.into()),
        ])],
    };
    let chains = vec![chain("prerouting", Hook::Prerouting), chain("output", Hook::Output)];
    let table = Table { family: Family::Inet, name: "guest".to_owned(), sets: vec![], chains };
    nft::apply(&pod.netns, &Ruleset { tables: vec![table] })?;
    Ok(netns)
}

pub(crate) fn c10_a_guest_behind_a_bridge_is_reached() -> Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        let netns = guest(&lab.server, APP)?;
        says(&Sockets::in_netns(netns), (Ipv4Addr::UNSPECIFIED, APP).into(), "guest", &lab.tasks)?;
        let there = SocketAddr::new(lab.server.v4.into(), APP);
        let expected = format!("guest to {}", lab.client.v4);
        // Control: outside of the mesh.
        ensure!(asked(&lab.client, there).await? == expected);
        let local = lab.local("");
        let (client, _zds0) = serve(&lab, 0, &lab.client, "client", &local).await?;
        let (server, _zds1) = serve(&lab, 1, &lab.server, "server", &local).await?;
        for to in [there, VIP] {
            ensure!(asked(&lab.client, to).await? == expected, "{to}");
        }
        client.stop()?;
        let log = server.stop()?;
        has_line(&log, &["src.identity=\"spiffe://cluster.local/ns/ns/sa/client\""])?;
        let lines: HashSet<&str> = completed(&log).into_iter().collect();
        ensure!(lines.len() == 2, "{log}");
        Ok(())
    })
}
