//! Drain and stop of a pod's proxy.

use std::sync::Arc;
use std::time::Duration;

use isthmus_kit::wait::eventually_some;
use isthmus_rt::drain::Outcome;
use tokio::net::TcpStream;

use crate::test_mesh::*;

struct OpenConnection {
    network: TestMesh,
    client: Pod,
    server: Pod,
    stream: TcpStream,
    app: Echo,
}

/// Opens one connection end to end.
async fn open() -> OpenConnection {
    let network = TestMesh::new("east", &Arc::new(AddressRange::claim()));
    let (sleep, helloworld) = (network.workload("sleep", 1), network.workload("helloworld", 2));
    network.push(&[sleep.clone(), helloworld.clone()], &[], &[]);
    let app = network.echo(&helloworld).await;
    let (client, server) = (network.client(&sleep, app.address), network.server(&helloworld));
    let mut stream = client.dial().await;
    ping(&mut stream).await;
    OpenConnection { network, client, server, stream, app }
}

#[tokio::test]
async fn a_drain_finishes_open_connections_and_accepts_no_new_ones() {
    let OpenConnection { network, client, server, mut stream, .. } = open().await;
    let (address, drain) = (client.outbound, network.drain);
    drop(network.watch);
    let finish = async {
        let refused = async || TcpStream::connect(address).await.err();
        eventually_some(refused, || "connections are still accepted".to_owned()).await;
        ping(&mut stream).await;
        exchange(&mut stream, b"the rest").await.unwrap()
    };
    let (outcome, rest) = tokio::join!(drain.shutdown(TIMEOUT), finish);
    assert_eq!((outcome, rest), (Outcome::Drained, b"the rest".to_vec()));
    drop((client, server));
}

#[tokio::test]
async fn stop_resets_open_connections_at_its_deadline() {
    let OpenConnection { network, server, mut stream, app, client } = open().await;
    server.proxy.stop(Duration::ZERO).await;
    assert!(closed(&mut stream).await.is_err(), "reset, not closed");
    assert!(TcpStream::connect((app.address.ip(), HBONE)).await.is_err(), "its listeners are closed");
    let labels = ["reporter=\"destination\"", "response_flags=\"CONNECT\""];
    network.metric_becomes(1, "istio_tcp_connections_failed_total", &labels).await;
    assert_eq!(server.proxy.connections(), Default::default());
    // The client's pod is not affected: it accepts, and resets since the upstream is gone.
    assert!(closed(&mut client.dial().await).await.is_err());
}

#[tokio::test]
async fn a_dropped_pod_closes_its_connections() {
    let OpenConnection { network, client, server, mut stream, app } = open().await;
    drop(client);
    assert!(closed(&mut stream).await.is_err());
    network.metric_becomes(0, "istio_tcp_sockets_open", &["reporter=\"source\""]).await;
    network.metric_becomes(0, "istio_tcp_sockets_open", &["reporter=\"destination\""]).await;
    drop((server, app));
}
