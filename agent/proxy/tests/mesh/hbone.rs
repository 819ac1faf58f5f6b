//! HBONE between two pods of one network.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_hbone::{ConnectStatus, Head, OpenError};
use isthmus_kit::wait::eventually;
use isthmus_model::{Authority, Protocol};
use isthmus_proxy::{Carrier, Config, Connection};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::test_mesh::*;

/// A client, a server, and the server's service.
async fn pair() -> (TestMesh, isthmus_model::Workload, isthmus_model::Workload) {
    let network = TestMesh::new("east", &Arc::new(AddressRange::claim()));
    let (client, server) = (network.workload("sleep", 1), serving(network.workload("helloworld", 2)));
    network.push(&[client.clone(), server.clone()], &[network.service(10, &[])], &[]);
    (network, client, server)
}

fn vip(network: &TestMesh) -> SocketAddr {
    SocketAddr::new(network.block.ip(10), SERVICE_PORT)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_share_a_pooled_tunnel_and_are_counted_on_both_sides() {
    let (network, sleep, helloworld) = pair().await;
    let app = network.echo(&helloworld).await;
    let (client, server) = (network.client(&sleep, vip(&network)), network.server(&helloworld));
    let payload: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let (mut first, mut second) = (client.dial().await, client.dial().await);
    ping(&mut first).await;
    ping(&mut second).await;
    let outbound = client.proxy.connections().outbound;
    assert_eq!(outbound.len(), 2);
    let pod = helloworld.addresses[0];
    assert!(outbound.contains(&Connection {
        src: first.local_addr().unwrap(),
        original_dst: Some(vip(&network).to_string()),
        actual_dst: SocketAddr::new(pod, HBONE),
        protocol: Carrier::Hbone,
    }));
    let inbound = server.proxy.connections().inbound;
    assert_eq!(inbound.len(), 2);
    assert_eq!(inbound[0].src, inbound[1].src, "both use one tunnel");
    assert_eq!(inbound[0].original_dst.as_deref(), Some(HOSTNAME));
    assert_eq!(inbound[0].actual_dst, app.address);

    assert_eq!(exchange(&mut first, &payload).await.unwrap(), payload, "half-close works in both directions");
    assert_eq!(exchange(&mut second, b"").await.unwrap(), b"");
    let total = payload.len() as u64 + 2;
    let service = format!("destination_service=\"{HOSTNAME}\"");
    for reporter in ["reporter=\"source\"", "reporter=\"destination\""] {
        let labels = [
            reporter,
            service.as_str(),
            "source_principal=\"spiffe://cluster.local/ns/sample/sa/sleep\"",
            "destination_principal=\"spiffe://cluster.local/ns/sample/sa/helloworld\"",
            "destination_workload=\"helloworld\"",
            "connection_security_policy=\"mutual_tls\"",
            "response_flags=\"-\"",
        ];
        network.metric_becomes(2, "istio_tcp_connections_closed_total", &labels).await;
        assert_eq!(network.metric("istio_tcp_connections_opened_total", &labels), 2);
        assert_eq!(network.metric("istio_tcp_connections_failed_total", &labels), 0);
        assert_eq!(network.metric("istio_tcp_sent_bytes_total", &labels), total);
        assert_eq!(network.metric("istio_tcp_received_bytes_total", &labels), total);
    }
    network.metric_becomes(0, "istio_tcp_sockets_open", &["reporter=\"source\""]).await;
    assert_eq!(
        network.metric("istio_tcp_sockets_open", &["reporter=\"destination\""]),
        1,
        "the pooled tunnel stays open"
    );
    assert_eq!(client.proxy.connections(), Default::default());
}

#[tokio::test]
async fn an_hbone_workload_is_never_connected_to_in_plaintext() {
    let (network, sleep, helloworld) = pair().await;
    let app = network.echo(&helloworld).await;
    // Its HBONE port is closed.
    let client = network.client(&sleep, app.address);
    let mut stream = client.dial().await;
    assert!(closed(&mut stream).await.is_err(), "reset, not closed");
    assert_eq!(app.accepted(), 0);
    let labels = ["reporter=\"source\"", "response_flags=\"CONNECT\"", "source_workload=\"sleep\""];
    network.metric_becomes(1, "istio_tcp_connections_failed_total", &labels).await;
}

#[tokio::test]
async fn a_server_with_another_identity_is_refused() {
    let (network, sleep, helloworld) = pair().await;
    let app = network.echo(&helloworld).await;
    // Another pod than the mesh's state says has the address.
    let mut impostor = helloworld.clone();
    impostor.name = "impostor".into();
    impostor.service_account = "impostor".into();
    impostor.uid = "east//Pod/sample/impostor".into();
    impostor.addresses = vec![network.block.ip(99)];
    network.push(&[impostor.clone()], &[], &[]);
    impostor.addresses = helloworld.addresses.clone();
    let _server = network.server(&impostor);
    let client = network.client(&sleep, app.address);
    let mut stream = client.dial().await;
    assert!(closed(&mut stream).await.is_err());
    assert_eq!(app.accepted(), 0);
    let labels = ["reporter=\"source\"", "response_flags=\"TLS_FAILURE\""];
    network.metric_becomes(1, "istio_tcp_connections_failed_total", &labels).await;
}

#[tokio::test]
async fn a_connect_is_validated_before_the_application_is_dialled() {
    let (network, sleep, helloworld) = pair().await;
    let app = network.echo(&helloworld).await;
    let _server = network.server(&helloworld);
    let pod = helloworld.addresses[0];
    let tunnel = network.tunnel(&sleep.identity(), SocketAddr::new(pod, HBONE), &helloworld.identity()).await;
    let ask = async |authority: Authority| tunnel.open(&Head::new(authority)).await.map(|_| ());
    let ip = |last, port| Authority::Ip(SocketAddr::new(network.block.ip(last), port));
    let host = |name: &str, port| Authority::Host { hostname: name.into(), port };
    assert_eq!(
        ask(ip(77, APP_PORT)).await,
        Err(OpenError::Status(ConnectStatus::BAD_REQUEST)),
        "another pod's address"
    );
    assert_eq!(
        ask(host("nobody.sample.svc.cluster.local", 80)).await,
        Err(OpenError::Status(ConnectStatus::SERVICE_UNAVAILABLE))
    );
    assert_eq!(
        ask(host(HOSTNAME, 1)).await,
        Err(OpenError::Status(ConnectStatus::SERVICE_UNAVAILABLE)),
        "no such port of the service"
    );
    for own in [15001, 15006, 15008, 15053] {
        assert_eq!(
            ask(ip(2, own)).await,
            Err(OpenError::Status(ConnectStatus::SERVICE_UNAVAILABLE)),
            "{own} is a port of the proxy"
        );
    }
    assert_eq!(
        ask(ip(2, 9)).await,
        Err(OpenError::Status(ConnectStatus::SERVICE_UNAVAILABLE)),
        "the port is closed"
    );
    assert_eq!(app.accepted(), 0);
    assert_eq!(ask(ip(2, APP_PORT)).await, Ok(()));
    assert_eq!(ask(host(HOSTNAME, SERVICE_PORT)).await, Ok(()), "the service port leads to the target port");
    eventually(|| app.accepted() == 2, || "the application was not reached twice".to_owned()).await;
}

#[tokio::test]
async fn a_pod_unknown_to_the_control_plane_has_no_connections() {
    let (network, sleep, helloworld) = pair().await;
    let stranger = network.workload("stranger", 5);
    let pod = network.client(&stranger, vip(&network));
    assert!(closed(&mut pod.dial().await).await.is_err());
    // Inbound, it has no identity for the handshake.
    let client = network.client(&sleep, SocketAddr::new(stranger.addresses[0], APP_PORT));
    let mut known = stranger.clone();
    known.name = "renamed".into();
    network.push(&[known], &[], &[]);
    assert!(closed(&mut client.dial().await).await.is_err());
    drop(helloworld);
}

#[tokio::test]
async fn the_hbone_port_requires_a_client_certificate_of_the_mesh() {
    let (network, _, helloworld) = pair().await;
    let _server = network.server(&helloworld);
    let mut stream = TcpStream::connect((helloworld.addresses[0], HBONE)).await.unwrap();
    let answer = exchange(&mut stream, b"GET / HTTP/1.1\r\n\r\n").await.unwrap_or_default();
    // At most a TLS alert.
    assert!(answer.len() <= 7 && answer.first().is_none_or(|kind| *kind == 21), "{answer:?}");
    let other = "spiffe://elsewhere/ns/sample/sa/sleep".parse().unwrap();
    let certificate = isthmus_identity::CertSource::certificate(&network.certs, &other).await.unwrap();
    let config = certificate.client_tls(&[helloworld.identity()]).config();
    let tcp = TcpStream::connect((helloworld.addresses[0], HBONE)).await.unwrap();
    // In TLS 1.3 the client sees the server's refusal at its first read.
    let mut session = isthmus_kit::tls::connect(config, tcp).await.unwrap();
    let mut byte = [0];
    assert!(session.read_exact(&mut byte).await.is_err());
}

#[tokio::test]
async fn destinations_outside_of_the_mesh_get_plaintext() {
    let (network, sleep, _) = pair().await;
    let outside = Echo::listen(SocketAddr::new(network.block.ip(50), 0), &network.tasks).await;
    let client = network.client(&sleep, outside.address);
    let mut stream = client.dial().await;
    ping(&mut stream).await;
    assert_eq!(client.proxy.connections().outbound[0].protocol, Carrier::Tcp);
    assert_eq!(exchange(&mut stream, b"plain").await.unwrap(), b"plain");
    let labels = [
        "reporter=\"source\"",
        "destination_workload=\"unknown\"",
        "source_principal=\"unknown\"",
        "connection_security_policy=\"unknown\"",
    ];
    network.metric_becomes(1, "istio_tcp_connections_closed_total", &labels).await;
    // Likewise a workload without HBONE.
    let mut legacy = network.workload("legacy", 51);
    legacy.protocol = Protocol::Tcp;
    network.push(&[legacy.clone()], &[], &[]);
    let app = network.echo(&legacy).await;
    client.proxy.stop(Duration::ZERO).await;
    let client = network.client(&sleep, app.address);
    assert_eq!(exchange(&mut client.dial().await, b"plain").await.unwrap(), b"plain");
}

#[tokio::test]
async fn ports_of_the_proxy_are_refused_as_destination() {
    let (network, mut sleep, _) = pair().await;
    // Its second address is reserved for documentation (RFC 5737), and not a loopback address.
    let documentation = "192.0.2.1".parse().unwrap();
    sleep.addresses.push(documentation);
    network.push(std::slice::from_ref(&sleep), &[], &[]);
    for (ip, port) in [("127.0.0.1".parse().unwrap(), 15001), (documentation, 15053)] {
        let client = network.client(&sleep, SocketAddr::new(ip, port));
        assert!(closed(&mut client.dial().await).await.is_err(), "{ip}:{port}");
        client.proxy.stop(Duration::ZERO).await;
    }
    assert_eq!(network.metric("istio_tcp_connections_opened_total", &[]), 0, "refused before a record");
}

#[tokio::test]
async fn silent_clients_do_not_block_the_hbone_port() {
    // Silent clients take all handshake slots until the TLS deadline of an hour, but are evicted after 10 ms.
    let config = Config {
        handshakes: 2,
        handshake_grace: Duration::from_millis(10),
        tls_deadline: Duration::from_secs(3600),
        ..Config::default()
    };
    let network = TestMesh::with_config("east", &Arc::new(AddressRange::claim()), config);
    let (sleep, helloworld) = (network.workload("sleep", 1), network.workload("helloworld", 2));
    network.push(&[sleep.clone(), helloworld.clone()], &[], &[]);
    let app = network.echo(&helloworld).await;
    let _server = network.server(&helloworld);
    let hbone = (helloworld.addresses[0], HBONE);
    let mut silent = Vec::new();
    for _ in 0..8 {
        // Two hold the slots and four wait; the rest is reset at once.
        silent.extend(TcpStream::connect(hbone).await);
    }
    assert!(!closed(&mut silent[0]).await.is_ok_and(|read| read > 0), "the first is evicted");
    let client = network.client(&sleep, app.address);
    assert_eq!(exchange(&mut client.dial().await, b"hello").await.unwrap(), b"hello");
}

#[tokio::test]
async fn an_unfinished_handshake_is_closed_at_the_tls_deadline() {
    let config = Config { tls_deadline: Duration::from_millis(100), ..Config::default() };
    let network = TestMesh::with_config("east", &Arc::new(AddressRange::claim()), config);
    let helloworld = network.workload("helloworld", 2);
    network.push(std::slice::from_ref(&helloworld), &[], &[]);
    // Issued in advance, so that the deadline covers the handshake only.
    isthmus_identity::CertSource::certificate(&network.certs, &helloworld.identity()).await.unwrap();
    let _server = network.server(&helloworld);
    let hello = isthmus_kit::pki::client_hello("a.b").unwrap();
    // Nothing, half of a ClientHello, and a ClientHello without the client's second flight.
    for sent in [&[][..], &hello[..hello.len() / 2], &hello[..]] {
        let mut stream = TcpStream::connect((helloworld.addresses[0], HBONE)).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, sent).await.unwrap();
        let start = std::time::Instant::now();
        let mut answer = Vec::new();
        // The server's flight may precede the close.
        let read = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "{} bytes keep a connection open", sent.len());
        assert!(start.elapsed() >= Duration::from_millis(90), "not before the deadline");
    }
    network.metric_becomes(0, "istio_tcp_sockets_open", &["reporter=\"destination\""]).await;
}
