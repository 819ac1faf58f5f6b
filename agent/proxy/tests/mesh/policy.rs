//! Who may connect, and until when.

use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_hbone::session::TlsSession;
use isthmus_hbone::{Head, OpenError, client};
use isthmus_identity::{CertSource as _, PeerIdentity};
use isthmus_model::policy::{Match, StringMatch};
use isthmus_model::{Action, Authority, Policy, Scope, Workload};
use tokio::io::AsyncWriteExt as _;

use crate::world::*;

fn network() -> (Network, Workload, Workload, Workload) {
    let network = Network::new("east", &Arc::new(Block::claim()));
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
    assert_eq!(tunnel.open(&forged).await.unwrap_err(), OpenError::Status(401));
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
    for (who, expected) in [(&sleep, None), (&thief, Some(OpenError::Status(401)))] {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (mine, theirs) = (
            network.certs.certificate(&who.identity()).await.unwrap(),
            network.certs.certificate(&helloworld.identity()).await.unwrap(),
        );
        let (near, far) = tokio::join!(
            TlsSession::connect(mine.client_config(&[helloworld.identity()]), near, PATIENCE),
            TlsSession::accept(theirs.server_config(), far, PATIENCE),
        );
        let far = far.unwrap();
        let peer = PeerIdentity::of(far.state()).unwrap();
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
