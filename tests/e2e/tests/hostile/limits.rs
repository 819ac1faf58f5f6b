//! Descriptors, handshakes and ports: what one pod, or a stranger, may hold of an agent.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isthmus_identity::{Manager, fake::FakeSigner, manager};
use isthmus_kit::lab::{self, Host};
use isthmus_kit::{probe, wait};
use isthmus_rt::task::Tasks;
use isthmus_sys::netns::Netns;
use isthmus_sys::socket::Sockets;

use crate::world::{Cue, DESCRIPTORS, ECHO, PATIENCE, Peer, World};

/// The agent's own descriptors, beside those of pods: the rest of 4,096.
const OWN: usize = 512;
/// Handshake slots of a pod, and connections that may wait for one.
const SLOTS: usize = 3 * 256;
/// Handshakes whose slowest but one counts.
const HANDSHAKES: usize = 40;
/// Delay below which a handshake's is the machine's: both sides compute it on the cores that the flood uses, too.
const NOISE: Duration = Duration::from_millis(100);

async fn readiness(node: &Netns) -> Result<u16> {
    Ok(probe::get(node, "127.0.0.1:15021", "/healthz/ready").await?.status)
}

async fn metrics(node: &Netns) -> Result<String> {
    Ok(probe::get(node, "127.0.0.1:15020", "/metrics").await?.body)
}

/// How many of some new connections work.
async fn working(from: &Sockets, to: SocketAddr, number: usize) -> usize {
    let mut working = 0;
    for _ in 0..number {
        let exchange = async {
            let stream = from.connect(to, None, PATIENCE).await?;
            lab::exchange(stream, b"works").await
        };
        working += usize::from(exchange.await.is_ok_and(|answer| answer == b"works"));
    }
    working
}

pub(crate) fn a_pod_that_holds_its_descriptors_leaves_those_of_its_neighbour() -> Result<()> {
    // The test holds the other ends.
    isthmus_sys::limits::raise_nofile()?;
    lab::block_on(async {
        let world = World::new().await?;
        let (from, to) = (world.lab.client.sockets(), world.server(ECHO));
        let (victim, service) = world.victim();
        let (pid, node) = (world.agents[0].pid(), world.lab.nodes[0].netns.clone());
        let attack = move |cue: Cue| async move {
            let mut all = Vec::new();
            for _ in 0..3000 {
                all.push(from.connect(to, None, PATIENCE).await?.into_std()?);
            }
            // What is refused is told so by a reset.
            wait::until("more than a thousand connections are refused", async || {
                all.retain(is_open);
                all.len() < 2000
            })
            .await?;
            let (open, refused) = (all.len(), 3000 - all.len());
            let descriptors = World::descriptors(pid)?;
            let (ready, works) = (readiness(&node).await?, working(&victim, service, 20).await);
            eprintln!("{open} open, {refused} refused, {descriptors} descriptors; neighbour: {works} of 20");
            ensure!(works == 20, "the neighbour's connections: {works} of 20");
            ensure!(ready == 200, "readiness {ready}");
            ensure!(descriptors < DESCRIPTORS + OWN, "{descriptors} descriptors");
            ensure!(open > 500, "{open} open");
            let series = "isthmus_descriptor_budget_refusals_total{namespace=\"ns\",pod=\"client\"}";
            ensure!(metrics(&node).await?.contains(series), "{series} is missing");
            cue.hold().await;
            Ok(())
        };
        world.judge(0, attack).await
    })
}

fn is_open(stream: &TcpStream) -> bool {
    matches!(stream.peek(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

/// Opens a thousand connections a second that never send a byte, and keeps the last of them open.
async fn silent(from: Sockets, to: SocketAddr) {
    let (start, mut open) = (Instant::now(), VecDeque::new());
    for number in 0_u64.. {
        let due = Duration::from_millis(number);
        tokio::time::sleep(due.saturating_sub(start.elapsed())).await;
        if let Ok(stream) = from.connect(to, None, PATIENCE).await {
            open.push_back(stream);
        }
        if open.len() > 2000 {
            open.pop_front();
        }
    }
}

/// The slowest but one of some handshakes, one after the other.
async fn handshakes(peer: &Peer, certs: &Manager) -> Result<Duration> {
    let mut all = Vec::new();
    for _ in 0..HANDSHAKES {
        let start = Instant::now();
        let session =
            tokio::time::timeout(PATIENCE, peer.connect_as(certs)).await.context("no handshake")??;
        all.push(start.elapsed());
        drop(session);
    }
    all.sort_unstable();
    Ok(all[HANDSHAKES - 2])
}

pub(crate) fn silent_connections_of_a_stranger_delay_no_honest_handshake() -> Result<()> {
    isthmus_sys::limits::raise_nofile()?;
    lab::block_on(async {
        let world = World::new().await?;
        // Of the same network as the stranger.
        let honest = world.peer_at(&world.lab.lan.host()?);
        let (from, to) = (world.lab.outsider.sockets(), world.server(15008));
        let pid = world.agents[1].pid();
        let attack = move |cue: Cue| async move {
            let tasks = Tasks::new("attacker");
            let certs = Manager::new(Arc::new(FakeSigner::new()), manager::Config::default(), &tasks);
            let quiet = handshakes(&honest, &certs).await?;
            tasks.spawn("silent connections", silent(from, to));
            wait::until("all slots are held, and as many connections wait as may", async || {
                World::descriptors(pid).is_ok_and(|descriptors| descriptors > SLOTS)
            })
            .await?;
            let attacked = handshakes(&honest, &certs).await?;
            eprintln!("honest handshakes: {quiet:?} -> {attacked:?}");
            ensure!(attacked <= (2 * quiet).max(NOISE), "handshakes went from {quiet:?} to {attacked:?}");
            cue.hold().await;
            Ok(())
        };
        world.judge(1, attack).await
    })
}

pub(crate) fn a_pod_that_holds_a_port_of_the_agent_is_the_only_one_that_does_not_start() -> Result<()> {
    lab::block_on(async {
        let world = World::new().await?;
        let node = &world.lab.nodes[0].netns;
        ensure!(readiness(node).await? == 200, "not ready before");
        let mut pods: Vec<(Host, u16, _)> = Vec::new();
        for port in [15001, 15006, 15008, 15053] {
            let pod = world.lab.lan.host()?;
            let holder = pod.netns.run(|| {
                let hold = |ip: IpAddr| std::net::TcpListener::bind((ip, port));
                let v4 = hold(Ipv4Addr::LOCALHOST.into())?;
                std::io::Result::Ok((v4, hold(Ipv6Addr::LOCALHOST.into())?))
            })??;
            let name = format!("holder-{port}");
            let refused =
                world.add(0, &name, &pod).await?.with_context(|| format!("{port}: it has started"))?;
            ensure!(refused.contains(&port.to_string()) && refused.contains("in use"), "{refused}");
            pods.push((pod, port, holder));
        }
        ensure!(readiness(node).await? == 200, "a pod's port makes the agent NotReady");
        let text = metrics(node).await?;
        ensure!(text.contains("workload_manager_pending_proxy_count 4"), "{text}");
        let dump = probe::get(node, "127.0.0.1:15000", "/config_dump").await?.body;
        ensure!(dump.contains("\"reason\": \"listeners: bind"), "the reason is not in the dump");
        let another = world.lab.lan.host()?;
        ensure!(world.add(0, "another", &another).await?.is_none(), "another pod does not start");
        let (victim, service) = world.victim();
        ensure!(working(&victim, service, 1).await == 1, "the neighbour's connection");
        // Each starts by itself once its port is free.
        for (pod, port, holder) in pods {
            drop(holder);
            let what = format!("the pod that held {port} does not start");
            wait::until(&what, async || {
                let to = SocketAddr::new(pod.v4.into(), 15008);
                world.lab.outsider.sockets().connect(to, None, PATIENCE).await.is_ok()
            })
            .await?;
        }
        Ok(())
    })
}
