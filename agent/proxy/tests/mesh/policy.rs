//! Who may connect, and until when.

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

use crate::world::*;

fn network() -> (Network, Workload, Workload, Workload) {
    network_with(Config::default())
}

fn network_with(config: Config) -> (Network, Workload, Workload, Workload) {
    let network = Network::with_config("east", &Arc::new(Block::claim()), config);
    let (client, server) = (network.workload("sleep", 1), serving(network.workload("helloworld", 2)));
    let thief = network.workload("thief", 3);
    network.push(&[client.clone(), server.clone(), thief.clone()], &[network.service(10, &[])], &[]);
    (network, client, server, thief)
}

/// Only `sleep` may.
fn only_sleep(sleep: &Workload) -> Policy {
    policy("only-sleep", Action::Allow, &sleep.identity())
}

#[tokio::test]
async fn only_the_allowed_principal_is_let_through() {
    let (network, sleep, helloworld, thief) = network();
    network.push(&[], &[], &[only_sleep(&sleep)]);
    let app = network.echo(&helloworld).await;
    let _server = network.server(&helloworld);
    let allowed = network.client(&sleep, app.address);
    assert_eq!(exchange(&mut allowed.dial().await, b"hello").await.unwrap(), b"hello");
    let refused = network.client(&thief, app.address);
    assert!(end(&mut refused.dial().await).await.is_err());
    assert_eq!(app.seen(), 1);
    let thief = "source_principal=\"spiffe://cluster.local/ns/sample/sa/thief\"";
    let denied = ["reporter=\"destination\"", thief, "response_flags=\"DENY\""];
    network.metric_becomes(1, "istio_tcp_connections_failed_total", &denied).await;
    let failed = ["reporter=\"source\"", thief, "response_flags=\"CONNECT\""];
    network.metric_becomes(1, "istio_tcp_connections_failed_total", &failed).await;
}

#[tokio::test]
async fn no_header_stands_in_for_an_identity() {
    let (network, sleep, helloworld, thief) = network();
    network.push(&[], &[], &[only_sleep(&sleep)]);
    let app = network.echo(&helloworld).await;
    let _server = network.server(&helloworld);
    let to = SocketAddr::new(helloworld.addresses[0], HBONE);
    let forged = Head {
        baggage: Some(
            "k8s.cluster.name=east,k8s.namespace.name=sample,k8s.deployment.name=sleep,service.name=sleep"
                .into(),
        ),
        forwarded: Some(format!("for=\"{}:1\";host={HOSTNAME}", sleep.addresses[0])),
        forwarded_network: Some("elsewhere".into()),
        ..Head::new(Authority::Ip(app.address))
    };
    let tunnel = network.tunnel(&thief.identity(), to, &helloworld.identity()).await;
    assert_eq!(tunnel.open(&forged).await.unwrap_err(), OpenError::Status(ConnectStatus::UNAUTHORIZED));
    assert_eq!(app.seen(), 0);
    // The names are believed for labels, from another network; the identity is still the proven one.
    let labels = [
        "reporter=\"destination\"",
        "source_workload=\"sleep\"",
        "source_principal=\"spiffe://cluster.local/ns/sample/sa/thief\"",
        "response_flags=\"DENY\"",
    ];
    network.metric_becomes(1, "istio_tcp_connections_closed_total", &labels).await;
    // The same head from who may is let through: it was the identity that was refused.
    let tunnel = network.tunnel(&sleep.identity(), to, &helloworld.identity()).await;
    let (_stream, answer) = tunnel.open(&forged).await.unwrap();
    assert!(answer.baggage.unwrap().contains("service.name=helloworld"));
}

#[tokio::test]
async fn a_peer_that_was_proven_elsewhere_passes_the_same_policy() {
    let (network, sleep, helloworld, thief) = network();
    network.push(&[], &[], &[only_sleep(&sleep)]);
    let app = network.echo(&helloworld).await;
    let server = network.server(&helloworld);
    for (who, expected) in [(&sleep, None), (&thief, Some(OpenError::Status(ConnectStatus::UNAUTHORIZED)))] {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (mine, theirs) = (
            network.certs.certificate(&who.identity()).await.unwrap(),
            network.certs.certificate(&helloworld.identity()).await.unwrap(),
        );
        let server_tls = theirs.server_tls();
        let (near, far) = tokio::join!(
            TlsSession::connect(mine.client_tls(&[helloworld.identity()]).config(), near, PATIENCE),
            TlsSession::accept(server_tls.config(), far, PATIENCE),
        );
        let far = far.unwrap();
        let peer = server_tls.peer(far.state()).unwrap();
        assert_eq!(*peer.id(), who.identity());
        let source = SocketAddr::new(who.addresses[0], 40_000);
        let serve = server.proxy.serve(peer, source, SocketAddr::new(helloworld.addresses[0], HBONE), far);
        let call = async {
            let settings = isthmus_hbone::Settings::default();
            let tunnel = client::handshake(near.unwrap(), &settings, &network.tasks).await.unwrap();
            let head = Head::new(Authority::Ip(app.address));
            assert_eq!(tunnel.open(&head).await.err(), expected);
        };
        tokio::join!(serve, call);
    }
    let labels = ["reporter=\"destination\"", "source_workload=\"thief\"", "response_flags=\"DENY\""];
    network.metric_becomes(1, "istio_tcp_connections_failed_total", &labels).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_policy_cuts_what_it_refuses_and_nothing_else() {
    let (network, sleep, helloworld, thief) = network();
    let app = network.echo(&helloworld).await;
    let server = network.server(&helloworld);
    let (kept, cut) = (network.client(&sleep, app.address), network.client(&thief, app.address));
    let (mut kept, mut cut) = (kept.dial().await, (cut.dial().await, cut));
    ping(&mut kept).await;
    ping(&mut cut.0).await;
    assert_eq!(server.proxy.connections().inbound.len(), 2);
    network.push(&[], &[], &[only_sleep(&sleep)]);
    assert!(end(&mut cut.0).await.is_err(), "cut, not finished");
    ping(&mut kept).await;
    eventually(|| server.proxy.connections().inbound.len() == 1, || "it is still in the table".to_owned())
        .await;
    let labels = ["reporter=\"destination\"", "source_workload=\"unknown\"", "response_flags=\"DENY\""];
    network.metric_becomes(1, "istio_tcp_connections_failed_total", &labels).await;
}

#[tokio::test]
async fn a_policy_that_is_newly_attached_to_a_workload_counts_for_what_is_open() {
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
    assert!(end(&mut stream).await.is_err());
}

#[tokio::test]
async fn plaintext_has_no_identity() {
    let (network, _, helloworld, _) = network();
    let app = network.echo(&helloworld).await;
    let server = network.run(&helloworld, app.address, Some(app.address));
    let mut open = tokio::net::TcpStream::connect(server.plaintext).await.unwrap();
    ping(&mut open).await;
    // What STRICT mutual TLS arrives as: deny whoever has no principal.
    let clause = Match { not_principals: vec![StringMatch::Presence], ..Match::default() };
    let strict =
        Policy { rules: vec![vec![vec![clause]]], ..policy("strict", Action::Deny, &helloworld.identity()) };
    network.push(&[], &[], std::slice::from_ref(&strict));
    assert!(end(&mut open).await.is_err(), "what was open is cut");
    let mut refused = tokio::net::TcpStream::connect(server.plaintext).await.unwrap();
    let _ = refused.write_all(b"x").await;
    assert!(end(&mut refused).await.is_err());
    assert_eq!(app.seen(), 1);
    let labels = ["reporter=\"destination\"", "response_flags=\"DENY\"", "source_principal=\"unknown\""];
    network.metric_becomes(2, "istio_tcp_connections_failed_total", &labels).await;
    network.remove_policy(&strict.key());
    let mut again = tokio::net::TcpStream::connect(server.plaintext).await.unwrap();
    ping(&mut again).await;
}

/// The pod's own policy, which it names.
fn named(action: Action, principal: &isthmus_model::SpiffeId) -> Policy {
    Policy { scope: Scope::WorkloadSelector, ..policy("late", action, principal) }
}

#[tokio::test]
async fn new_connections_wait_for_a_policy_that_is_named_and_missing_and_it_decides() {
    let (network, sleep, mut helloworld, _) = network();
    let late = named(Action::Allow, &sleep.identity());
    helloworld.authorization_policies = vec![late.key()];
    network.push(std::slice::from_ref(&helloworld), &[], &[]);
    let app = network.echo(&helloworld).await;
    let server = network.run(&helloworld, app.address, Some(app.address));
    let client = network.client(&sleep, app.address);
    let mut tunnelled = client.dial().await;
    let mut plain = tokio::net::TcpStream::connect(server.plaintext).await.unwrap();
    eventually(|| server.proxy.connections().inbound.len() == 2, || "they are not judged".to_owned()).await;
    assert_eq!(app.seen(), 0, "nothing reaches the application on a policy's behalf that nobody knows");
    network.push(&[], &[], &[late]);
    ping(&mut tunnelled).await;
    assert!(end(&mut plain).await.is_err(), "it has no identity, and one is asked for");
    assert_eq!(app.seen(), 1);
}

#[tokio::test]
async fn a_policy_that_does_not_arrive_refuses_new_connections_in_the_end() {
    let config = Config { policy_deadline: Duration::from_millis(50), ..Config::default() };
    let network = Network::with_config("east", &Arc::new(Block::claim()), config);
    let (sleep, mut helloworld) = (network.workload("sleep", 1), network.workload("helloworld", 2));
    helloworld.authorization_policies = vec!["sample/late".into()];
    network.push(&[sleep.clone(), helloworld.clone()], &[], &[]);
    let app = network.echo(&helloworld).await;
    let server = network.run(&helloworld, app.address, Some(app.address));
    let to = SocketAddr::new(helloworld.addresses[0], HBONE);
    let tunnel = network.tunnel(&sleep.identity(), to, &helloworld.identity()).await;
    let refused = tunnel.open(&Head::new(Authority::Ip(app.address))).await.unwrap_err();
    assert_eq!(refused, OpenError::Status(ConnectStatus::UNAUTHORIZED));
    let mut plain = tokio::net::TcpStream::connect(server.plaintext).await.unwrap();
    assert!(end(&mut plain).await.is_err());
    assert_eq!(app.seen(), 0);
    for who in ["unknown", "spiffe://cluster.local/ns/sample/sa/sleep"] {
        let who = format!("source_principal=\"{who}\"");
        let labels = ["reporter=\"destination\"", "response_flags=\"DENY\"", &who];
        network.metric_becomes(1, "istio_tcp_connections_failed_total", &labels).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_closes_hundreds_at_once_and_those_that_stay_notice_nothing() {
    let (network, sleep, helloworld, thief) = network();
    let app = network.echo(&helloworld).await;
    let server = network.run(&helloworld, app.address, Some(app.address));
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
    let begun = tokio::time::Instant::now();
    network.push(&[], &[], &[only_sleep(&sleep)]);
    ping(&mut kept).await;
    for stream in &mut open {
        assert!(end(stream).await.is_err(), "cut, not finished");
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    ping(&mut kept).await;
    eventually(|| server.proxy.connections().inbound.len() == 1, || "some are still in the table".to_owned())
        .await;
}

#[tokio::test]
async fn the_agents_own_listener_leads_to_its_metrics_and_readiness_only() {
    agent_pod_leads_to(AgentPorts::WELL_KNOWN).await;
}

#[tokio::test]
async fn the_agents_own_listener_leads_to_the_configured_metrics_port() {
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
        Arc::clone(&network.world),
        info(&ztunnel),
        BoundListener::from_std(bound, false).unwrap(),
        Sockets::host(),
        network.watch.clone(),
    );
    let ask = async |who: &Workload, port: u16| {
        let tunnel = network.tunnel(&who.identity(), SocketAddr::new(own, HBONE), &ztunnel.identity()).await;
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
        "policy holds here too"
    );
    assert_eq!(apps[2].seen(), 0);
}

#[tokio::test]
async fn a_configured_dns_port_is_no_target_in_a_pod() {
    let ports = AgentPorts { dns: 15054, ..AgentPorts::WELL_KNOWN };
    let (network, sleep, helloworld, _) = network_with(Config { ports, ..Config::default() });
    let address = helloworld.addresses[0];
    let dns = Echo::listen(SocketAddr::new(address, ports.dns), &network.tasks).await;
    let app = network.echo(&helloworld).await;
    let _server = network.run(&helloworld, app.address, Some(app.address));
    let tunnel =
        network.tunnel(&sleep.identity(), SocketAddr::new(address, HBONE), &helloworld.identity()).await;
    let ask = async |port: u16| {
        let head = Head::new(Authority::Ip(SocketAddr::new(address, port)));
        tunnel.open(&head).await.map(|_| ())
    };
    assert_eq!(ask(ports.dns).await, Err(OpenError::Status(ConnectStatus::SERVICE_UNAVAILABLE)));
    assert_eq!(ask(APP_PORT).await, Ok(()));
    assert_eq!(dns.seen(), 0);
}
