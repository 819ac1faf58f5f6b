//! Authorization of new connections, and recheck of open ones.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_hbone::session::TlsSession;
use isthmus_hbone::{ConnectStatus, Head, OpenError, client};
use isthmus_identity::CertSource as _;
use isthmus_kit::wait::eventually;
use isthmus_model::policy::{Match, StringMatch};
use isthmus_model::{Action, AgentPorts, Authority, Policy, Scope, Workload};
use isthmus_proxy::{AgentPodProxy, BoundListener, Config};
use isthmus_sys::socket::Sockets;
use tokio::io::AsyncWriteExt as _;

use crate::test_mesh::*;

fn network() -> (TestMesh, Workload, Workload, Workload) {
    network_with(Config::default())
}

fn network_with(config: Config) -> (TestMesh, Workload, Workload, Workload) {
    let network = TestMesh::with_config("east", &Arc::new(AddressRange::claim()), config);
    let (client, server) = (network.workload("sleep", 1), serving(network.workload("helloworld", 2)));
    let thief = network.workload("thief", 3);
    network.push(&[client.clone(), server.clone(), thief.clone()], &[network.service(10, &[])], &[]);
    (network, client, server, thief)
}

/// Allows `sleep` only.
fn only_sleep(sleep: &Workload) -> Policy {
    policy("only-sleep", Action::Allow, &sleep.identity())
}

#[tokio::test]
async fn only_the_allowed_principal_is_forwarded() {
    let (network, sleep, helloworld, thief) = network();
    network.push(&[], &[], &[only_sleep(&sleep)]);
    let app = network.echo(&helloworld).await;
    let _server = network.server(&helloworld);
    let allowed = network.client(&sleep, app.address);
    assert_eq!(exchange(&mut allowed.dial().await, b"hello").await.unwrap(), b"hello");
    let refused = network.client(&thief, app.address);
    assert!(closed(&mut refused.dial().await).await.is_err());
    assert_eq!(app.accepted(), 1);
    let thief = "source_principal=\"spiffe://cluster.local/ns/sample/sa/thief\"";
    let denied = ["reporter=\"destination\"", thief, "response_flags=\"DENY\""];
    network.metric_becomes(1, "istio_tcp_connections_failed_total", &denied).await;
    let failed = ["reporter=\"source\"", thief, "response_flags=\"CONNECT\""];
    network.metric_becomes(1, "istio_tcp_connections_failed_total", &failed).await;
}

#[tokio::test]
async fn headers_do_not_replace_the_authenticated_identity() {
    let (network, sleep, helloworld, thief) = network();
    network.push(&[], &[], &[only_sleep(&sleep)]);
    let app = network.echo(&helloworld).await;
    let _server = network.server(&helloworld);
    let to = SocketAddr::new(helloworld.addresses[0], HBONE);
    let forged = Head {
        baggage: Some(
            "k8s.cluster.name=east,k8s.namespace.name=kube-system,k8s.deployment.name=sleep,service.name=sleep"
                .into(),
        ),
        forwarded: Some(format!("for=\"{}:1\";host={HOSTNAME}", sleep.addresses[0])),
        forwarded_network: Some("elsewhere".into()),
        ..Head::new(Authority::Ip(app.address))
    };
    let tunnel = network.tunnel(&thief.identity(), to, &helloworld.identity()).await;
    assert_eq!(tunnel.open(&forged).await.unwrap_err(), OpenError::Status(ConnectStatus::UNAUTHORIZED));
    assert_eq!(app.accepted(), 0);
    // A refused client is counted by what it proved alone.
    let labels = [
        "reporter=\"destination\"",
        "source_workload=\"unknown\"",
        "source_workload_namespace=\"sample\"",
        "source_principal=\"spiffe://cluster.local/ns/sample/sa/thief\"",
        "response_flags=\"DENY\"",
    ];
    for family in ["closed", "failed"] {
        network.metric_becomes(1, &format!("istio_tcp_connections_{family}_total"), &labels).await;
    }
    // The same headers with an allowed identity are forwarded. Of a client of another network, baggage sets the labels.
    let tunnel = network.tunnel(&sleep.identity(), to, &helloworld.identity()).await;
    let (_stream, answer) = tunnel.open(&forged).await.unwrap();
    let labels = ["reporter=\"destination\"", "source_workload=\"sleep\"", "source_cluster=\"east\""];
    network.metric_becomes(1, "istio_tcp_connections_opened_total", &labels).await;
    assert!(answer.baggage.unwrap().contains("service.name=helloworld"));
}

#[tokio::test]
async fn a_byte_stream_of_an_authenticated_peer_is_subject_to_policy() {
    let (network, sleep, helloworld, thief) = network();
    network.push(&[], &[], &[only_sleep(&sleep)]);
    let app = network.echo(&helloworld).await;
    let server = network.server(&helloworld);
    for (client, expected) in [(&sleep, None), (&thief, Some(OpenError::Status(ConnectStatus::UNAUTHORIZED)))]
    {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (mine, theirs) = (
            network.certs.certificate(&client.identity()).await.unwrap(),
            network.certs.certificate(&helloworld.identity()).await.unwrap(),
        );
        let server_tls = theirs.server_tls();
        let (near, far) = tokio::join!(
            TlsSession::connect(mine.client_tls(&[helloworld.identity()]).config(), near, TIMEOUT),
            TlsSession::accept(server_tls.config(), far, TIMEOUT),
        );
        let far = far.unwrap();
        let peer = server_tls.peer(far.state()).unwrap();
        assert_eq!(*peer.id(), client.identity());
        let source = SocketAddr::new(client.addresses[0], 40_000);
        let serve = server.proxy.serve(peer, source, SocketAddr::new(helloworld.addresses[0], HBONE), far);
        let call = async {
            let settings = isthmus_hbone::Settings::default();
            let tunnel = client::start(near.unwrap(), &settings, &network.tasks).unwrap();
            let head = Head::new(Authority::Ip(app.address));
            assert_eq!(tunnel.open(&head).await.err(), expected);
        };
        tokio::join!(serve, call);
    }
    let labels = ["reporter=\"destination\"", "source_workload=\"thief\"", "response_flags=\"DENY\""];
    network.metric_becomes(1, "istio_tcp_connections_failed_total", &labels).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_policy_resets_only_the_connections_it_denies() {
    let (network, sleep, helloworld, thief) = network();
    let app = network.echo(&helloworld).await;
    let server = network.server(&helloworld);
    let (kept, cut) = (network.client(&sleep, app.address), network.client(&thief, app.address));
    let (mut kept, mut cut) = (kept.dial().await, (cut.dial().await, cut));
    ping(&mut kept).await;
    ping(&mut cut.0).await;
    assert_eq!(server.proxy.connections().inbound.len(), 2);
    network.push(&[], &[], &[only_sleep(&sleep)]);
    assert!(closed(&mut cut.0).await.is_err(), "reset, not closed");
    ping(&mut kept).await;
    eventually(|| server.proxy.connections().inbound.len() == 1, || "it is still in the table".to_owned())
        .await;
    let labels = ["reporter=\"destination\"", "source_workload=\"unknown\"", "response_flags=\"DENY\""];
    network.metric_becomes(1, "istio_tcp_connections_failed_total", &labels).await;
}

#[tokio::test]
async fn attaching_a_policy_rechecks_open_connections() {
    let (network, sleep, mut helloworld, _) = network();
    let selector =
        Policy { scope: Scope::WorkloadSelector, ..policy("no-sleep", Action::Deny, &sleep.identity()) };
    network.push(&[], &[], std::slice::from_ref(&selector));
    let app = network.echo(&helloworld).await;
    let _server = network.server(&helloworld);
    let client = network.client(&sleep, app.address);
    let mut stream = client.dial().await;
    ping(&mut stream).await;
    helloworld.authorization_policies = vec![selector.key()];
    network.push(&[helloworld], &[], &[]);
    assert!(closed(&mut stream).await.is_err());
}

#[tokio::test]
async fn strict_mutual_tls_denies_new_and_open_plaintext() {
    let (network, _, helloworld, _) = network();
    let app = network.echo(&helloworld).await;
    let server = network.start_pod(&helloworld, app.address, Some(app.address));
    let mut open = tokio::net::TcpStream::connect(server.plaintext).await.unwrap();
    ping(&mut open).await;
    // The control plane sends STRICT mutual TLS as a DENY of clients without a principal.
    let clause = Match { not_principals: vec![StringMatch::Presence], ..Match::default() };
    let strict =
        Policy { rules: vec![vec![vec![clause]]], ..policy("strict", Action::Deny, &helloworld.identity()) };
    network.push(&[], &[], std::slice::from_ref(&strict));
    assert!(closed(&mut open).await.is_err(), "the open connection is reset");
    let mut refused = tokio::net::TcpStream::connect(server.plaintext).await.unwrap();
    let _ = refused.write_all(b"x").await;
    assert!(closed(&mut refused).await.is_err());
    assert_eq!(app.accepted(), 1);
    let labels = ["reporter=\"destination\"", "response_flags=\"DENY\"", "source_principal=\"unknown\""];
    network.metric_becomes(2, "istio_tcp_connections_failed_total", &labels).await;
    network.remove_policy(&strict.key());
    let mut again = tokio::net::TcpStream::connect(server.plaintext).await.unwrap();
    ping(&mut again).await;
}

/// A policy that applies to workloads which reference it.
fn selector_policy(action: Action, principal: &isthmus_model::SpiffeId) -> Policy {
    Policy { scope: Scope::WorkloadSelector, ..policy("late", action, principal) }
}

#[tokio::test]
async fn new_connections_wait_for_a_missing_policy_which_then_decides() {
    let (network, sleep, mut helloworld, _) = network();
    let late = selector_policy(Action::Allow, &sleep.identity());
    helloworld.authorization_policies = vec![late.key()];
    network.push(std::slice::from_ref(&helloworld), &[], &[]);
    let app = network.echo(&helloworld).await;
    let server = network.start_pod(&helloworld, app.address, Some(app.address));
    let client = network.client(&sleep, app.address);
    let mut tunnelled = client.dial().await;
    let mut plain = tokio::net::TcpStream::connect(server.plaintext).await.unwrap();
    eventually(
        || server.proxy.connections().inbound.len() == 2,
        || "the connections are not in the table".to_owned(),
    )
    .await;
    assert_eq!(app.accepted(), 0, "nothing is forwarded while a policy is missing");
    network.push(&[], &[], &[late]);
    ping(&mut tunnelled).await;
    assert!(closed(&mut plain).await.is_err(), "plaintext has no identity to allow");
    assert_eq!(app.accepted(), 1);
}

#[tokio::test]
async fn a_missing_policy_denies_new_connections_at_the_deadline() {
    let config = Config { policy_deadline: Duration::from_millis(50), ..Config::default() };
    let network = TestMesh::with_config("east", &Arc::new(AddressRange::claim()), config);
    let (sleep, mut helloworld) = (network.workload("sleep", 1), network.workload("helloworld", 2));
    helloworld.authorization_policies = vec!["sample/late".into()];
    network.push(&[sleep.clone(), helloworld.clone()], &[], &[]);
    let app = network.echo(&helloworld).await;
    let server = network.start_pod(&helloworld, app.address, Some(app.address));
    let to = SocketAddr::new(helloworld.addresses[0], HBONE);
    let tunnel = network.tunnel(&sleep.identity(), to, &helloworld.identity()).await;
    let refused = tunnel.open(&Head::new(Authority::Ip(app.address))).await.unwrap_err();
    assert_eq!(refused, OpenError::Status(ConnectStatus::UNAUTHORIZED));
    let mut plain = tokio::net::TcpStream::connect(server.plaintext).await.unwrap();
    assert!(closed(&mut plain).await.is_err());
    assert_eq!(app.accepted(), 0);
    for principal in ["unknown", "spiffe://cluster.local/ns/sample/sa/sleep"] {
        let principal = format!("source_principal=\"{principal}\"");
        let labels = ["reporter=\"destination\"", "response_flags=\"DENY\"", &principal];
        network.metric_becomes(1, "istio_tcp_connections_failed_total", &labels).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_change_resets_hundreds_of_connections_without_delaying_others() {
    let (network, sleep, helloworld, thief) = network();
    let app = network.echo(&helloworld).await;
    let server = network.start_pod(&helloworld, app.address, Some(app.address));
    let (kept, cut) = (network.client(&sleep, app.address), network.client(&thief, app.address));
    let mut kept = kept.dial().await;
    ping(&mut kept).await;
    let mut open = Vec::new();
    for at in 0..200 {
        let plain = tokio::net::TcpStream::connect(server.plaintext);
        let mut stream = if at % 2 == 0 { cut.dial().await } else { plain.await.unwrap() };
        ping(&mut stream).await;
        open.push(stream);
    }
    let start = tokio::time::Instant::now();
    network.push(&[], &[], &[only_sleep(&sleep)]);
    ping(&mut kept).await;
    for stream in &mut open {
        assert!(closed(stream).await.is_err(), "reset, not closed");
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    ping(&mut kept).await;
    eventually(|| server.proxy.connections().inbound.len() == 1, || "some are still in the table".to_owned())
        .await;
}

#[tokio::test]
async fn the_agent_pod_serves_only_metrics_and_readiness_over_hbone() {
    agent_pod_leads_to(AgentPorts::WELL_KNOWN).await;
}

#[tokio::test]
async fn the_agent_pod_serves_the_configured_metrics_port_over_hbone() {
    agent_pod_leads_to(AgentPorts { metrics: 15090, dns: 15054, ..AgentPorts::WELL_KNOWN }).await;
}

async fn agent_pod_leads_to(ports: AgentPorts) {
    let (network, sleep, ztunnel, thief) = network_with(Config { ports, ..Config::default() });
    network.push(&[], &[], &[only_sleep(&sleep)]);
    let own = ztunnel.addresses[0];
    let mut apps = Vec::new();
    for port in [ports.metrics, ports.readiness, APP_PORT] {
        apps.push(Echo::listen(SocketAddr::new(own, port), &network.tasks).await);
    }
    let bound = std::net::TcpListener::bind((own, HBONE)).unwrap();
    let _proxy = AgentPodProxy::start(
        Arc::clone(&network.ctx),
        pod_ref(&ztunnel),
        BoundListener::from_std(bound, false).unwrap(),
        Sockets::host(),
        network.watch.clone(),
    );
    let ask = async |client: &Workload, port: u16| {
        let tunnel =
            network.tunnel(&client.identity(), SocketAddr::new(own, HBONE), &ztunnel.identity()).await;
        let head = Head::new(Authority::Ip(SocketAddr::new(own, port)));
        tunnel.open(&head).await.map(|_| ())
    };
    assert_eq!(ask(&sleep, ports.metrics).await, Ok(()));
    assert_eq!(ask(&sleep, ports.readiness).await, Ok(()));
    for port in [ports.admin, 15001, 15006, HBONE, ports.dns, APP_PORT] {
        assert_eq!(
            ask(&sleep, port).await,
            Err(OpenError::Status(ConnectStatus::SERVICE_UNAVAILABLE)),
            "{port}"
        );
    }
    assert_eq!(
        ask(&thief, ports.metrics).await,
        Err(OpenError::Status(ConnectStatus::UNAUTHORIZED)),
        "subject to policy"
    );
    assert_eq!(apps[2].accepted(), 0);
}

#[tokio::test]
async fn a_configured_dns_port_is_no_target_in_a_pod() {
    let ports = AgentPorts { dns: 15054, ..AgentPorts::WELL_KNOWN };
    let (network, sleep, helloworld, _) = network_with(Config { ports, ..Config::default() });
    let address = helloworld.addresses[0];
    let dns = Echo::listen(SocketAddr::new(address, ports.dns), &network.tasks).await;
    let app = network.echo(&helloworld).await;
    let _server = network.start_pod(&helloworld, app.address, Some(app.address));
    let tunnel =
        network.tunnel(&sleep.identity(), SocketAddr::new(address, HBONE), &helloworld.identity()).await;
    let ask = async |port: u16| {
        let head = Head::new(Authority::Ip(SocketAddr::new(address, port)));
        tunnel.open(&head).await.map(|_| ())
    };
    assert_eq!(ask(ports.dns).await, Err(OpenError::Status(ConnectStatus::SERVICE_UNAVAILABLE)));
    assert_eq!(ask(APP_PORT).await, Ok(()));
    assert_eq!(dns.accepted(), 0);
}
