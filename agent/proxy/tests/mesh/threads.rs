//! Connections on several data threads: where they are carried, and that none of it is lost when a pod or the process ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_kit::wait::{eventually, eventually_some};
use isthmus_rt::drain::Outcome;
use isthmus_rt::threads::{RunningThreads, Threads};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::test_mesh::*;

const COUNT: usize = 3;

/// A client and a server on agents of their own, each of several threads.
struct TwoAgents {
    network: TestMesh,
    client: Pod,
    server: Pod,
    app: Echo,
    of_client: Threads,
    of_server: Threads,
    _running: [RunningThreads; 2],
}

impl TwoAgents {
    async fn start() -> Self {
        let [(of_client, one), (of_server, other)] =
            ["client", "server"].map(|name| Threads::start(name, COUNT).unwrap());
        let network = TestMesh::new("east", &Arc::new(AddressRange::claim())).on(&of_client);
        let (sleep, helloworld) = (network.workload("sleep", 1), serving(network.workload("helloworld", 2)));
        network.push(&[sleep.clone(), helloworld.clone()], &[network.service(10, &[])], &[]);
        let app = network.echo(&helloworld).await;
        let vip = SocketAddr::new(network.block.ip(10), SERVICE_PORT);
        let client = network.client(&sleep, vip);
        let network = network.on(&of_server);
        let server = network.server(&helloworld);
        Self { network, client, server, app, of_client, of_server, _running: [one, other] }
    }

    /// Connections that are open end to end.
    async fn open(&self, count: usize) -> Vec<TcpStream> {
        let dials = (0..count).map(|_| self.client.dial());
        let mut streams = futures_util::future::join_all(dials).await;
        for stream in &mut streams {
            ping(stream).await;
        }
        streams
    }

    /// Open tunnels, as the server's agent counts them.
    fn tunnels(&self) -> u64 {
        self.network.metric("istio_tcp_sockets_open", &["reporter=\"destination\""])
    }
}

/// How often each thread has had to be woken.
fn wake_ups(threads: &Threads) -> Vec<u64> {
    threads.iter().map(|thread| threads.handle(thread).metrics().worker_park_count(0)).collect()
}

fn since(threads: &Threads, before: &[u64]) -> Vec<u64> {
    let mut more: Vec<u64> = wake_ups(threads).iter().zip(before).map(|(now, before)| now - before).collect();
    more.sort_unstable();
    more
}

#[tokio::test]
async fn connections_to_one_destination_share_a_tunnel_of_one_thread() {
    let agents = TwoAgents::start().await;
    // Fewer than what counts as a burst.
    let _open = agents.open(4).await;
    assert_eq!(agents.tunnels(), 1);
}

/// Both legs of a connection, its tunnel and its task are on one thread of each agent: of each agent's threads only one
/// wakes up while messages pass.
#[tokio::test]
async fn messages_of_a_connection_wake_one_thread_only() {
    const MESSAGES: u64 = 300;
    let agents = TwoAgents::start().await;
    for _ in 0..3 {
        let mut stream = agents.open(1).await.remove(0);
        let before = [&agents.of_client, &agents.of_server].map(wake_ups);
        for _ in 0..MESSAGES {
            ping(&mut stream).await;
        }
        for (threads, before) in [&agents.of_client, &agents.of_server].into_iter().zip(&before) {
            let woken = since(threads, before);
            assert!(woken[COUNT - 1] >= MESSAGES, "{woken:?}");
            // A timer may fire, and the end of the last connection is told.
            assert!(woken[..COUNT - 1].iter().all(|count| *count < 20), "{woken:?}");
        }
    }
}

#[tokio::test]
async fn connections_of_a_hot_destination_spread_over_tunnels_of_several_threads() {
    let agents = TwoAgents::start().await;
    let mut streams = Vec::new();
    // A burst counts as load before any load was measured; a slow machine needs more than one.
    let more = async {
        while agents.tunnels() < 2 {
            streams.extend(agents.open(20).await);
        }
    };
    tokio::time::timeout(TIMEOUT, more).await.expect("one tunnel carries all");
    let before = [&agents.of_client, &agents.of_server].map(wake_ups);
    for stream in &mut streams {
        ping(stream).await;
    }
    for (threads, before) in [&agents.of_client, &agents.of_server].into_iter().zip(&before) {
        let woken = since(threads, before);
        assert!(woken[COUNT - 2] > 0, "several threads carry them: {woken:?}");
    }
    assert!(agents.app.accepted() >= streams.len());
}

#[tokio::test]
async fn a_drain_waits_for_the_connections_of_all_threads() {
    let agents = TwoAgents::start().await;
    let mut streams = agents.open(20).await;
    let TwoAgents { network, client, server, _running, .. } = agents;
    let (address, drain) = (client.outbound, network.drain);
    drop(network.watch);
    let finish = async {
        let refused = async || TcpStream::connect(address).await.err();
        eventually_some(refused, || "connections are still accepted".to_owned()).await;
        for stream in &mut streams {
            assert_eq!(exchange(stream, b"the rest").await.unwrap(), b"the rest");
        }
    };
    let (outcome, ()) = tokio::join!(drain.shutdown(TIMEOUT), finish);
    assert_eq!(outcome, Outcome::Drained);
    drop((client, server));
}

#[tokio::test]
async fn stopping_a_pod_ends_its_connections_on_all_threads() {
    let agents = TwoAgents::start().await;
    let mut streams = agents.open(20).await;
    agents.client.proxy.stop(Duration::ZERO).await;
    for stream in &mut streams {
        assert!(closed(stream).await.is_err(), "reset, not closed");
    }
    assert_eq!(agents.client.proxy.connections(), Default::default());
    drop(agents.client);
    let tunnels = || agents.network.metric("istio_tcp_sockets_open", &["reporter=\"destination\""]);
    eventually(|| tunnels() == 0, || format!("{} tunnels of the removed pod are open", tunnels())).await;
}

/// Bytes arrive in order and complete whichever thread carries them.
#[tokio::test]
async fn many_bulk_connections_are_carried_whole() {
    let agents = TwoAgents::start().await;
    let payload: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let mut streams = agents.open(12).await;
    let exchanges = streams.iter_mut().map(|stream| exchange(stream, &payload));
    for received in futures_util::future::join_all(exchanges).await {
        assert!(received.unwrap() == payload);
    }
    assert_eq!(streams[0].read(&mut [0]).await.unwrap(), 0);
}
