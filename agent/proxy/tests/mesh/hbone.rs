//! One tunnel between two pods.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_hbone::{ConnectStatus, Head, OpenError};
use isthmus_kit::wait::eventually;
use isthmus_model::{Authority, Protocol};
use isthmus_proxy::{Carrier, Config, Connection};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::world::*;

/// Two pods and a service: the client's connections go to the service.
async fn pair() -> (Network, isthmus_model::Workload, isthmus_model::Workload) {
    let network = Network::new("east", &Arc::new(Block::claim()));
    let (client, server) = (network.workload("sleep", 1), serving(network.workload("helloworld", 2)));
    network.push(&[client.clone(), server.clone()], &[network.service(10, &[])], &[]);
    (network, client, server)
}

fn vip(network: &Network) -> SocketAddr {
    SocketAddr::new(network.block.ip(10), SERVICE_PORT)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_go_both_ways_over_one_pooled_tunnel_and_are_counted() {
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
    assert_eq!(inbound[0].src, inbound[1].src, "both come through one tunnel");
    assert_eq!(inbound[0].original_dst.as_deref(), Some(HOSTNAME));
    assert_eq!(inbound[0].actual_dst, app.address);

    assert_eq!(exchange(&mut first, &payload).await.unwrap(), payload, "each half is closed on its own");
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
        "the tunnel stays"
    );
    assert_eq!(client.proxy.connections(), Default::default());
}

#[tokio::test]
async fn a_workload_in_the_mesh_is_never_called_in_plaintext() {
    let (network, sleep, helloworld) = pair().await;
    let app = network.echo(&helloworld).await;
    // Nobody listens on its HBONE port.
    let client = network.client(&sleep, app.address);
    let mut stream = client.dial().await;
    assert!(end(&mut stream).await.is_err(), "the client sees a reset, not an empty answer");
    assert_eq!(app.seen(), 0);
    let labels = ["reporter=\"source\"", "response_flags=\"CONNECT\"", "source_workload=\"sleep\""];
    network.metric_becomes(1, "istio_tcp_connections_failed_total", &labels).await;
}

#[tokio::test]
async fn a_server_that_proves_another_identity_gets_nothing() {
    let (network, sleep, helloworld) = pair().await;
    let app = network.echo(&helloworld).await;
    // The pod there is another one than the mesh's state says.
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
    assert!(end(&mut stream).await.is_err());
    assert_eq!(app.seen(), 0);
    let labels = ["reporter=\"source\"", "response_flags=\"TLS_FAILURE\""];
    network.metric_becomes(1, "istio_tcp_connections_failed_total", &labels).await;
}

#[tokio::test]
async fn a_connect_is_validated_before_anybody_is_asked() {
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
            "{own} is our own port"
        );
    }
    assert_eq!(
        ask(ip(2, 9)).await,
        Err(OpenError::Status(ConnectStatus::SERVICE_UNAVAILABLE)),
        "nobody listens there"
    );
    assert_eq!(app.seen(), 0);
    assert_eq!(ask(ip(2, APP_PORT)).await, Ok(()));
    assert_eq!(ask(host(HOSTNAME, SERVICE_PORT)).await, Ok(()), "the service port leads to the target port");
    eventually(|| app.seen() == 2, || "the application was not reached twice".to_owned()).await;
}

#[tokio::test]
async fn a_pod_the_control_plane_does_not_know_refuses_and_is_refused() {
    let (network, sleep, helloworld) = pair().await;
    let stranger = network.workload("stranger", 5);
    let pod = network.client(&stranger, vip(&network));
    assert!(end(&mut pod.dial().await).await.is_err());
    // Nor does it finish a handshake: it does not know as whom.
    let client = network.client(&sleep, SocketAddr::new(stranger.addresses[0], APP_PORT));
    let mut known = stranger.clone();
    known.name = "renamed".into();
    network.push(&[known], &[], &[]);
    assert!(end(&mut client.dial().await).await.is_err());
    drop(helloworld);
}

#[tokio::test]
async fn the_hbone_port_answers_nobody_without_a_certificate() {
    let (network, _, helloworld) = pair().await;
    let _server = network.server(&helloworld);
    let mut stream = TcpStream::connect((helloworld.addresses[0], HBONE)).await.unwrap();
    let answer = exchange(&mut stream, b"GET / HTTP/1.1\r\n\r\n").await.unwrap_or_default();
    // At most an alert.
    assert!(answer.len() <= 7 && answer.first().is_none_or(|kind| *kind == 21), "{answer:?}");
    let other = "spiffe://elsewhere/ns/sample/sa/sleep".parse().unwrap();
    let certificate = isthmus_identity::CertSource::certificate(&network.certs, &other).await.unwrap();
    let config = certificate.client_tls(&[helloworld.identity()]).config();
    let tcp = TcpStream::connect((helloworld.addresses[0], HBONE)).await.unwrap();
    // In TLS 1.3 the client learns of its refusal from the first read.
    let mut session = isthmus_hbone::session::TlsSession::connect(config, tcp, PATIENCE).await.unwrap();
    let mut byte = [0];
    assert!(session.read_exact(&mut byte).await.is_err());
}

#[tokio::test]
async fn what_is_not_in_the_mesh_is_reached_as_it_is() {
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
    // A workload that is known but speaks no HBONE, likewise.
    let mut legacy = network.workload("legacy", 51);
    legacy.protocol = Protocol::Tcp;
    network.push(&[legacy.clone()], &[], &[]);
    let app = network.echo(&legacy).await;
    client.proxy.stop(Duration::ZERO).await;
    let client = network.client(&sleep, app.address);
    assert_eq!(exchange(&mut client.dial().await, b"plain").await.unwrap(), b"plain");
}

#[tokio::test]
async fn our_own_ports_are_no_destination() {
    let (network, mut sleep, _) = pair().await;
    // Its second address is one that is nobody's (RFC 5737), and not a loopback one.
    let documentation = "192.0.2.1".parse().unwrap();
    sleep.addresses.push(documentation);
    network.push(std::slice::from_ref(&sleep), &[], &[]);
    for (ip, port) in [("127.0.0.1".parse().unwrap(), 15001), (documentation, 15053)] {
        let client = network.client(&sleep, SocketAddr::new(ip, port));
        assert!(end(&mut client.dial().await).await.is_err(), "{ip}:{port}");
        client.proxy.stop(Duration::ZERO).await;
    }
    assert_eq!(network.metric("istio_tcp_connections_opened_total", &[]), 0, "it is refused early");
}

#[tokio::test]
async fn clients_that_connect_and_say_nothing_keep_nobody_out() {
    // As many as there are places, for an hour each; but safe for a moment only.
    let config = Config {
        handshakes: 2,
        handshake_grace: Duration::from_millis(10),
        tls_deadline: Duration::from_secs(3600),
        ..Config::default()
    };
    let network = Network::with_config("east", &Arc::new(Block::claim()), config);
    let (sleep, helloworld) = (network.workload("sleep", 1), network.workload("helloworld", 2));
    network.push(&[sleep.clone(), helloworld.clone()], &[], &[]);
    let app = network.echo(&helloworld).await;
    let _server = network.server(&helloworld);
    let hbone = (helloworld.addresses[0], HBONE);
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(TcpStream::connect(hbone).await.unwrap());
    }
    let client = network.client(&sleep, app.address);
    assert_eq!(exchange(&mut client.dial().await, b"hello").await.unwrap(), b"hello");
}

#[tokio::test]
async fn a_client_that_does_not_finish_its_handshake_is_cut_off_at_the_deadline() {
    let config = Config { tls_deadline: Duration::from_millis(100), ..Config::default() };
    let network = Network::with_config("east", &Arc::new(Block::claim()), config);
    let helloworld = network.workload("helloworld", 2);
    network.push(std::slice::from_ref(&helloworld), &[], &[]);
    // Signed before, so that the deadline is the handshake's alone.
    isthmus_identity::CertSource::certificate(&network.certs, &helloworld.identity()).await.unwrap();
    let _server = network.server(&helloworld);
    let hello = isthmus_kit::pki::client_hello("a.b").unwrap();
    // Nothing at all, half of a ClientHello, and a whole one without what comes after it.
    for said in [&[][..], &hello[..hello.len() / 2], &hello[..]] {
        let mut stream = TcpStream::connect((helloworld.addresses[0], HBONE)).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, said).await.unwrap();
        let begun = std::time::Instant::now();
        let mut answer = Vec::new();
        // Its end is what counts; what the server says before it is the handshake's.
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "{} bytes keep a connection open", said.len());
        assert!(begun.elapsed() >= Duration::from_millis(90), "it had its time");
    }
    network.metric_becomes(0, "istio_tcp_sockets_open", &["reporter=\"destination\""]).await;
}
