//! How a pod's data plane ends.

use std::sync::Arc;
use std::time::Duration;

use isthmus_kit::wait::eventually_some;
use isthmus_rt::drain::Outcome;
use tokio::net::TcpStream;

use crate::test_mesh::*;

struct Open {
    network: Network,
    client: Pod,
    server: Pod,
    stream: TcpStream,
    app: Echo,
}

/// One connection that is open end to end.
async fn open() -> Open {
    let network = Network::new("east", &Arc::new(Block::claim()));
    let (sleep, helloworld) = (network.workload("sleep", 1), network.workload("helloworld", 2));
    network.push(&[sleep.clone(), helloworld.clone()], &[], &[]);
    let app = network.echo(&helloworld).await;
    let (client, server) = (network.client(&sleep, app.address), network.server(&helloworld));
    let mut stream = client.dial().await;
    ping(&mut stream).await;
    Open { network, client, server, stream, app }
}

#[tokio::test]
async fn a_drain_lets_open_connections_finish_and_takes_no_new_ones() {
    let Open { network, client, server, mut stream, .. } = open().await;
    let (address, drain) = (client.outbound, network.drain);
    drop(network.watch);
    let finish = async {
        let refused = async || TcpStream::connect(address).await.err();
        eventually_some(refused, || "connections are still accepted".to_owned()).await;
        ping(&mut stream).await;
        exchange(&mut stream, b"the rest").await.unwrap()
    };
    let (outcome, rest) = tokio::join!(drain.shutdown(PATIENCE), finish);
    assert_eq!((outcome, rest), (Outcome::Drained, b"the rest".to_vec()));
    drop((client, server));
}

#[tokio::test]
async fn a_stopped_pod_cuts_what_is_left_at_its_deadline() {
    let Open { network, server, mut stream, app, client } = open().await;
    server.proxy.stop(Duration::ZERO).await;
    assert!(end(&mut stream).await.is_err(), "cut, not finished");
    assert!(TcpStream::connect((app.address.ip(), HBONE)).await.is_err(), "its listeners are closed");
    let labels = ["reporter=\"destination\"", "response_flags=\"CONNECT\""];
    network.metric_becomes(1, "istio_tcp_connections_failed_total", &labels).await;
    assert_eq!(server.proxy.connections(), Default::default());
    // Others are not concerned: the client's pod still answers, with a reset since nobody serves.
    assert!(end(&mut client.dial().await).await.is_err());
}

#[tokio::test]
async fn a_dropped_pod_leaves_nothing_open() {
    let Open { network, client, server, mut stream, app } = open().await;
    drop(client);
    assert!(end(&mut stream).await.is_err());
    network.metric_becomes(0, "istio_tcp_sockets_open", &["reporter=\"source\""]).await;
    network.metric_becomes(0, "istio_tcp_sockets_open", &["reporter=\"destination\""]).await;
    drop((server, app));
}
