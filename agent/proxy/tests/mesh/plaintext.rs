//! Captured inbound plaintext.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_proxy::Carrier;
use tokio::net::TcpStream;

use crate::test_mesh::*;

#[tokio::test]
async fn plaintext_is_forwarded_only_to_the_pods_own_addresses() {
    let network = TestMesh::new("east", &Arc::new(AddressRange::claim()));
    let (helloworld, other) = (serving(network.workload("helloworld", 2)), network.workload("other", 3));
    network.push(&[helloworld.clone(), other.clone()], &[network.service(10, &[])], &[]);
    let (app, elsewhere) = (network.echo(&helloworld).await, network.echo(&other).await);
    let server = network.start_pod(&helloworld, app.address, Some(app.address));
    let mut stream = TcpStream::connect(server.plaintext).await.unwrap();
    ping(&mut stream).await;
    assert_eq!(server.proxy.connections().inbound[0].protocol, Carrier::Tcp);
    assert_eq!(exchange(&mut stream, b"hello").await.unwrap(), b"hello");
    let labels = [
        "reporter=\"destination\"",
        "destination_workload=\"helloworld\"",
        "destination_service_name=\"helloworld\"",
        "connection_security_policy=\"unknown\"",
        "response_flags=\"-\"",
    ];
    network.metric_becomes(1, "istio_tcp_connections_closed_total", &labels).await;
    assert_eq!(network.metric("istio_tcp_sent_bytes_total", &labels), 6);
    server.proxy.stop(Duration::ZERO).await;

    let own_port = SocketAddr::new(helloworld.addresses[0], HBONE);
    for destination in [elsewhere.address, own_port] {
        let server = network.start_pod(&helloworld, app.address, Some(destination));
        let mut stream = TcpStream::connect(server.plaintext).await.unwrap();
        assert!(closed(&mut stream).await.is_err(), "{destination}");
        server.proxy.stop(Duration::ZERO).await;
    }
    assert_eq!((app.accepted(), elsewhere.accepted()), (1, 0));
}

/// Of the addresses that the control plane lists, and the one that the connection arrived at, either will do.
#[tokio::test]
async fn plaintext_is_forwarded_to_every_address_of_the_pod() {
    let network = TestMesh::new("east", &Arc::new(AddressRange::claim()));
    let mut helloworld = network.workload("helloworld", 2);
    helloworld.addresses.push(network.block.ip(4));
    // The control plane does not know that the pod has it.
    let mut unlisted = network.workload("unlisted", 3);
    let listens_at = unlisted.clone();
    unlisted.addresses = vec![network.block.ip(5)];
    network.push(&[helloworld.clone(), unlisted], &[], &[]);
    for (pod, destination) in [(&helloworld, network.block.ip(4)), (&listens_at, listens_at.addresses[0])] {
        let app = Echo::listen(SocketAddr::new(destination, APP_PORT), &network.tasks).await;
        let server = network.start_pod(pod, app.address, Some(app.address));
        let mut stream = TcpStream::connect(server.plaintext).await.unwrap();
        assert_eq!(exchange(&mut stream, b"hello").await.unwrap(), b"hello", "{destination}");
        server.proxy.stop(Duration::ZERO).await;
    }
}
