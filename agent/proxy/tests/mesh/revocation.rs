//! Who was revoked: neither let in nor called, and cut off when that happens to an open connection.

use std::sync::Arc;
use std::time::Duration;

use isthmus_identity::trust::Options;
use isthmus_identity::{CertSource as _, Revocations, SignError, Signer, Trust};
use isthmus_kit::pki::{Ca, Spec};
use isthmus_model::{SpiffeId, TrustDomains, Workload};
use isthmus_proxy::Config;
use isthmus_rt::BoxFuture;
use tokio::net::TcpStream;

use crate::gateway::{Joined, gateway_workload, hbone_only, join, start, vip};
use crate::world::*;

/// Signs with a CA whose lists the test writes.
struct Local(Arc<Ca>);

impl Signer for Local {
    fn sign(
        &self,
        id: &SpiffeId,
        csr_pem: String,
        _: Duration,
    ) -> BoxFuture<'_, Result<Vec<String>, SignError>> {
        let spec = Spec { uris: vec![id.to_string()], ..Spec::default() };
        let leaf = self.0.sign(&csr_pem, &spec).map_err(|error| SignError::Request(error.to_string()));
        Box::pin(async move { Ok(vec![leaf?, self.0.root_pem()]) })
    }
}

/// Two nodes of one network; each has what it trusts to itself.
struct Nodes {
    ca: Arc<Ca>,
    clients: Network,
    servers: Network,
    clients_trust: Trust,
    servers_trust: Trust,
    sleep: Workload,
    helloworld: Workload,
}

impl Nodes {
    fn new() -> Self {
        let ca = Arc::new(Ca::new("root").unwrap());
        let block = Arc::new(Block::claim());
        let trust = || {
            let trust = Trust::new(Options { revocable: true, ..Options::default() });
            trust.set_revocations(Revocations::None);
            trust
        };
        let (clients_trust, servers_trust) = (trust(), trust());
        let node = |trust: &Trust| {
            let signer = Arc::new(Local(Arc::clone(&ca)));
            Network::signed_by("east", &block, Config::default(), signer, trust.clone())
        };
        let (clients, servers) = (node(&clients_trust), node(&servers_trust));
        let (sleep, helloworld) = (clients.workload("sleep", 1), clients.workload("helloworld", 2));
        for network in [&clients, &servers] {
            network.push(&[sleep.clone(), helloworld.clone()], &[], &[]);
        }
        Self { ca, clients, servers, clients_trust, servers_trust, sleep, helloworld }
    }

    async fn list(&self, network: &Network, workload: &Workload) -> Revocations {
        list(&self.ca, network, workload).await
    }
}

/// A list that names the certificate that a workload has.
async fn list(ca: &Ca, network: &Network, workload: &Workload) -> Revocations {
    let certificate = network.certs.certificate(&workload.identity()).await.unwrap();
    let list = ca.crl(&[&certificate.chain()[0].pem]).unwrap();
    Revocations::parse(list.as_bytes()).unwrap()
}

/// Whether a new connection of the pod is reset, which may be before its client sees it made.
async fn is_refused(client: &Pod) -> bool {
    match TcpStream::connect(client.outbound).await {
        Ok(mut stream) => end(&mut stream).await.is_err(),
        Err(_) => true,
    }
}

const REJECTIONS: &str = "istio_crl_policy_rejections_total";
const FAILED: &str = "istio_tcp_connections_failed_total";

#[tokio::test]
async fn an_open_connection_ends_when_its_client_is_revoked_and_no_new_one_is_let_in() {
    let nodes = Nodes::new();
    let app = nodes.servers.echo(&nodes.helloworld).await;
    let _server = nodes.servers.server(&nodes.helloworld);
    let client = nodes.clients.client(&nodes.sleep, app.address);
    let mut open = client.dial().await;
    ping(&mut open).await;
    let list = nodes.list(&nodes.clients, &nodes.sleep).await;
    assert_eq!(nodes.servers_trust.set_revocations(list), 1);
    assert!(end(&mut open).await.is_err(), "the application sees a reset");
    let labels = ["reporter=\"destination\"", "response_flags=\"CERT_REVOKED\""];
    nodes.servers.metric_becomes(1, FAILED, &labels).await;
    let inbound = ["reporter=\"destination\""];
    assert_eq!(nodes.servers.metric(REJECTIONS, &inbound), 1);
    assert!(is_refused(&client).await);
    nodes.servers.metric_becomes(2, REJECTIONS, &inbound).await;
    assert_eq!(app.seen(), 1);
    // Who is no longer on the list is let in again.
    nodes.servers_trust.set_revocations(Revocations::None);
    assert_eq!(exchange(&mut client.dial().await, b"hello").await.unwrap(), b"hello");
    assert_eq!(nodes.servers.metric("istio_crl_untracked_connections_total", &inbound), 0);
}

#[tokio::test]
async fn an_open_connection_ends_when_its_server_is_revoked_and_it_is_not_called_again() {
    let nodes = Nodes::new();
    let app = nodes.servers.echo(&nodes.helloworld).await;
    let _server = nodes.servers.server(&nodes.helloworld);
    let client = nodes.clients.client(&nodes.sleep, app.address);
    let mut open = client.dial().await;
    ping(&mut open).await;
    let list = nodes.list(&nodes.servers, &nodes.helloworld).await;
    assert_eq!(nodes.clients_trust.set_revocations(list), 1);
    assert!(end(&mut open).await.is_err(), "the application sees a reset");
    let labels = ["reporter=\"source\"", "response_flags=\"CERT_REVOKED\""];
    nodes.clients.metric_becomes(1, FAILED, &labels).await;
    let outbound = ["reporter=\"source\""];
    assert_eq!(nodes.clients.metric(REJECTIONS, &outbound), 1);
    assert!(is_refused(&client).await);
    nodes.clients.metric_becomes(2, REJECTIONS, &outbound).await;
    let labels = ["reporter=\"source\"", "response_flags=\"TLS_FAILURE\""];
    nodes.clients.metric_becomes(1, FAILED, &labels).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_a_gateway_both_tunnels_end_when_their_peers_are_revoked() {
    for revoked in ["the gateway, of the outer tunnel", "the far pod, of the inner one"] {
        let ca = Arc::new(Ca::new("root").unwrap());
        let block = Arc::new(Block::claim());
        let strict = Trust::new(Options { revocable: true, ..Options::default() });
        strict.set_revocations(Revocations::None);
        let network = |name: &str, trust: &Trust| {
            let signer = Arc::new(Local(Arc::clone(&ca)));
            Network::signed_by(name, &block, Config::default(), signer, trust.clone())
        };
        let Joined { east, west, sleep, helloworld } =
            join(network("east", &strict), network("west", &Trust::default()));
        let _app = west.echo(&helloworld).await;
        let _server = west.server(&helloworld);
        let _gateway = start(&west, hbone_only(&west), &[service_key()]);
        let client = east.client(&sleep, vip(&east));
        let mut open = client.dial().await;
        ping(&mut open).await;
        let peer = if revoked.starts_with("the gateway") { gateway_workload(&west) } else { helloworld };
        assert!(strict.set_revocations(list(&ca, &west, &peer).await) >= 1, "{revoked}");
        assert!(end(&mut open).await.is_err(), "{revoked}");
        let labels = ["reporter=\"source\"", "response_flags=\"CERT_REVOKED\""];
        east.metric_becomes(1, FAILED, &labels).await;
        assert!(is_refused(&client).await, "{revoked}: it was called again");
        east.metric_becomes(2, REJECTIONS, &["reporter=\"source\""]).await;
    }
}

#[tokio::test]
async fn a_policy_that_names_an_alias_lets_the_peer_in_for_as_long_as_it_is_one() {
    let network = Network::new("east", &Arc::new(Block::claim()));
    let (sleep, helloworld) = (network.workload("sleep", 1), network.workload("helloworld", 2));
    let mut old = sleep.identity();
    old.trust_domain = "old".into();
    let only_old = policy("only-old", isthmus_model::Action::Allow, &old);
    network.push(&[sleep.clone(), helloworld.clone()], &[], &[only_old]);
    let app = network.echo(&helloworld).await;
    let _server = network.server(&helloworld);
    let client = network.client(&sleep, app.address);
    assert!(is_refused(&client).await);
    network.state.set_trust_domains(TrustDomains::new(None, ["old".into()]));
    let mut open = client.dial().await;
    ping(&mut open).await;
    network.state.set_trust_domains(TrustDomains::default());
    assert!(end(&mut open).await.is_err(), "it is none any more");
}
