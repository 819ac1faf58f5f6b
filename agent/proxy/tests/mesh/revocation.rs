//! Revoked peers: refused as client and server, and reset when they are revoked while a connection is open.

use std::sync::Arc;
use std::time::Duration;

use isthmus_identity::trust::Options;
use isthmus_identity::{CertSource as _, Revocations, SignError, Signer, Trust};
use isthmus_kit::pki::{Ca, Spec};
use isthmus_model::{SpiffeId, TrustDomains, Workload};
use isthmus_proxy::Config;
use isthmus_rt::BoxFuture;
use tokio::net::TcpStream;

use crate::gateway::{TwoNetworks, gateway_workload, hbone_only, join, start, vip};
use crate::test_mesh::*;

/// Signs with a CA whose revocation lists the test issues.
struct LocalSigner(Arc<Ca>);

impl Signer for LocalSigner {
    fn sign(
        &self,
        id: &SpiffeId,
        csr_pem: String,
        _: Duration,
    ) -> BoxFuture<'_, Result<Vec<String>, SignError>> {
        let spec = Spec { uris: vec![id.to_string()], ..Spec::default() };
        let leaf = self
            .0
            .sign(&csr_pem, &spec)
            .map_err(|error| SignError::LocalSigner { reason: error.to_string() });
        Box::pin(async move { Ok(vec![leaf?, self.0.root_pem()]) })
    }
}

/// Two nodes of one network, each with its own trust.
struct Nodes {
    ca: Arc<Ca>,
    clients: TestMesh,
    servers: TestMesh,
    clients_trust: Trust,
    servers_trust: Trust,
    sleep: Workload,
    helloworld: Workload,
}

impl Nodes {
    fn new() -> Self {
        let ca = Arc::new(Ca::new("root").unwrap());
        let block = Arc::new(AddressRange::claim());
        let trust = || {
            let trust = Trust::new(Options { revocable: true, ..Options::default() });
            trust.set_revocations(Revocations::None);
            trust
        };
        let (clients_trust, servers_trust) = (trust(), trust());
        let node = |trust: &Trust| {
            let signer = Arc::new(LocalSigner(Arc::clone(&ca)));
            TestMesh::signed_by("east", &block, Config::default(), signer, trust.clone())
        };
        let (clients, servers) = (node(&clients_trust), node(&servers_trust));
        let (sleep, helloworld) = (clients.workload("sleep", 1), clients.workload("helloworld", 2));
        for network in [&clients, &servers] {
            network.push(&[sleep.clone(), helloworld.clone()], &[], &[]);
        }
        Self { ca, clients, servers, clients_trust, servers_trust, sleep, helloworld }
    }

    async fn list(&self, network: &TestMesh, workload: &Workload) -> Revocations {
        list(&self.ca, network, workload).await
    }
}

/// A revocation list with the certificate of a workload.
async fn list(ca: &Ca, network: &TestMesh, workload: &Workload) -> Revocations {
    let certificate = network.certs.certificate(&workload.identity()).await.unwrap();
    let list = ca.crl(&[&certificate.chain()[0].pem]).unwrap();
    Revocations::parse(list.as_bytes()).unwrap()
}

/// Whether a new connection of the pod is reset, possibly before the client's connect returns.
async fn is_refused(client: &Pod) -> bool {
    match TcpStream::connect(client.outbound).await {
        Ok(mut stream) => closed(&mut stream).await.is_err(),
        Err(_) => true,
    }
}

const REJECTIONS: &str = "istio_crl_policy_rejections_total";
const FAILED: &str = "istio_tcp_connections_failed_total";

#[tokio::test]
async fn revoking_a_client_resets_its_connections_and_refuses_new_ones() {
    let nodes = Nodes::new();
    let app = nodes.servers.echo(&nodes.helloworld).await;
    let _server = nodes.servers.server(&nodes.helloworld);
    let client = nodes.clients.client(&nodes.sleep, app.address);
    let mut open = client.dial().await;
    ping(&mut open).await;
    let list = nodes.list(&nodes.clients, &nodes.sleep).await;
    assert_eq!(nodes.servers_trust.set_revocations(list), 1);
    assert!(closed(&mut open).await.is_err(), "reset, not closed");
    let labels = ["reporter=\"destination\"", "response_flags=\"CERT_REVOKED\""];
    nodes.servers.metric_becomes(1, FAILED, &labels).await;
    let inbound = ["reporter=\"destination\""];
    assert_eq!(nodes.servers.metric(REJECTIONS, &inbound), 1);
    assert!(is_refused(&client).await);
    nodes.servers.metric_becomes(2, REJECTIONS, &inbound).await;
    assert_eq!(app.accepted(), 1);
    // Allowed again when no longer on the list.
    nodes.servers_trust.set_revocations(Revocations::None);
    assert_eq!(exchange(&mut client.dial().await, b"hello").await.unwrap(), b"hello");
    assert_eq!(nodes.servers.metric("istio_crl_untracked_connections_total", &inbound), 0);
}

#[tokio::test]
async fn revoking_a_server_resets_connections_to_it_and_refuses_new_ones() {
    let nodes = Nodes::new();
    let app = nodes.servers.echo(&nodes.helloworld).await;
    let _server = nodes.servers.server(&nodes.helloworld);
    let client = nodes.clients.client(&nodes.sleep, app.address);
    let mut open = client.dial().await;
    ping(&mut open).await;
    let list = nodes.list(&nodes.servers, &nodes.helloworld).await;
    assert_eq!(nodes.clients_trust.set_revocations(list), 1);
    assert!(closed(&mut open).await.is_err(), "reset, not closed");
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
async fn revoking_either_peer_of_a_double_tunnel_resets_its_connections() {
    for revoked in ["the gateway, of the outer tunnel", "the far pod, of the inner one"] {
        let ca = Arc::new(Ca::new("root").unwrap());
        let block = Arc::new(AddressRange::claim());
        let strict = Trust::new(Options { revocable: true, ..Options::default() });
        strict.set_revocations(Revocations::None);
        let network = |name: &str, trust: &Trust| {
            let signer = Arc::new(LocalSigner(Arc::clone(&ca)));
            TestMesh::signed_by(name, &block, Config::default(), signer, trust.clone())
        };
        let TwoNetworks { east, west, sleep, helloworld } =
            join(network("east", &strict), network("west", &Trust::default()));
        let _app = west.echo(&helloworld).await;
        let _server = west.server(&helloworld);
        let _gateway = start(&west, hbone_only(&west), &[service_key()]);
        let client = east.client(&sleep, vip(&east));
        let mut open = client.dial().await;
        ping(&mut open).await;
        let peer = if revoked.starts_with("the gateway") { gateway_workload(&west) } else { helloworld };
        assert!(strict.set_revocations(list(&ca, &west, &peer).await) >= 1, "{revoked}");
        assert!(closed(&mut open).await.is_err(), "{revoked}");
        let labels = ["reporter=\"source\"", "response_flags=\"CERT_REVOKED\""];
        east.metric_becomes(1, FAILED, &labels).await;
        assert!(is_refused(&client).await, "{revoked}: a new connection was made");
        east.metric_becomes(2, REJECTIONS, &["reporter=\"source\""]).await;
    }
}

#[tokio::test]
async fn a_policy_with_a_trust_domain_alias_allows_while_the_alias_exists() {
    let network = TestMesh::new("east", &Arc::new(AddressRange::claim()));
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
    assert!(closed(&mut open).await.is_err(), "the alias was removed");
}
