//! The control plane between two API servers and a client that speaks gRPC over TLS.

use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use http::{Request as HttpRequest, Response as HttpResponse};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use isthmus_proto::ca::IstioCertificateRequest;
use isthmus_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use isthmus_proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use isthmus_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use isthmus_proto::type_url;
use isthmus_rt::BoxFuture;
use prost_types::{Struct, value::Kind};
use rustls_pki_types::ServerName;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::Service;
use tonic::{Code, Request, Streaming};

use super::*;
use playground_k8s::api::fixture::{Running, deployment, running};
use playground_k8s::client::{Collection, Event};
use playground_k8s::manifest::object;

/// One HTTP/2 connection as what tonic's clients want.
#[derive(Clone)]
struct Wire(SendRequest<tonic::body::Body>);

impl Service<HttpRequest<tonic::body::Body>> for Wire {
    type Response = HttpResponse<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: HttpRequest<tonic::body::Body>) -> Self::Future {
        let mut sender = self.0.clone();
        Box::pin(async move { sender.send_request(request).await })
    }
}

/// Clusters east and west, and a control plane of east that reads both.
struct TestMesh {
    east: Running,
    west: Running,
    wire: Wire,
    _dir: tempfile::TempDir,
}

impl TestMesh {
    async fn new() -> Self {
        let (east, west) = (running(validate).await, running(validate).await);
        for (cluster, name) in [(&east, "east"), (&west, "west")] {
            fill(cluster, name).await;
        }
        let dir = tempfile::tempdir().unwrap();
        fixture::write_pki(dir.path());
        let path = |name: &str| dir.path().join(name);
        let life = Duration::from_secs(3600);
        let authority =
            Authority::read(&path("ca.pem"), &path("ca-key.pem"), &path("root.pem"), life).unwrap();
        let id = |name: &str| ClusterId(name.to_owned());
        let clients = vec![(id("east"), east.client()), (id("west"), west.client())];
        let mesh = Mesh {
            trust_domain: "cluster.local".to_owned(),
            aliases: Vec::new(),
            root_namespace: "istio-system".to_owned(),
            domain: "cluster.local".to_owned(),
            scopes: mesh_config::default_scopes(),
        };
        let reviewer = Reviewer { own: id("east"), clients: clients.iter().cloned().collect() };
        let roots = authority.roots().to_owned();
        let tasks = east.tasks.clone();
        let known = Follower::new(mesh, id("east"), String::new(), clients, roots, PushLog::default())
            .start(&tasks)
            .await;
        let trusted = Account::parse("istio-system/ztunnel").unwrap();
        let shared = ServerState {
            known,
            reviewer,
            authority,
            trusted,
            log: PushLog::default(),
            tasks: tasks.clone(),
        };
        let server = tls::server(&path("cert.pem"), &path("key.pem"), &[b"h2"]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let group = tasks.clone();
        tasks.spawn("server", async move {
            serve(shared, listener, server, group).await;
        });
        let root = std::fs::read_to_string(path("root.pem")).unwrap();
        let wire = connect(address, &root, &tasks).await;
        Self { east, west, wire, _dir: dir }
    }

    /// The token of the node agent on a node of a cluster.
    async fn token(cluster: &Running, node: &str) -> String {
        let client = cluster.client();
        let pods = client.list("/api/v1/namespaces/istio-system/pods").await.unwrap();
        let pod = pods.iter().find(|pod| object::text(pod, "/spec/nodeName") == node).unwrap();
        let bound = json!({"kind": "Pod", "name": object::name(pod), "uid": object::uid(pod)});
        let spec = json!({"audiences": ["istio-ca"], "boundObjectRef": bound});
        let spec = serde_json::from_value(spec).unwrap();
        client.token("istio-system", "ztunnel", spec).await.unwrap()
    }

    async fn sign(&self, token: &str, cluster: &str, identity: &str) -> Result<Vec<String>, tonic::Status> {
        let fields = [("ImpersonatedIdentity".to_owned(), text(identity))].into();
        let request = IstioCertificateRequest {
            csr: fixture::csr(Some(identity)),
            validity_duration: 600,
            metadata: Some(Struct { fields }),
        };
        let mut client = IstioCertificateServiceClient::with_origin(self.wire.clone(), origin());
        let answer = client.create_certificate(authorized(request, token, cluster)).await?;
        Ok(answer.into_inner().cert_chain)
    }

    async fn subscribe(&self, token: &str, cluster: &str) -> Result<Subscribed, tonic::Status> {
        let (requests, stream) = mpsc::channel(8);
        let metadata = Struct { fields: [("CLUSTER_ID".to_owned(), text(cluster))].into() };
        let node = Node { id: "ztunnel~test".to_owned(), metadata: Some(metadata), ..Node::default() };
        let type_url = type_url::ADDRESS.to_owned();
        let first = DeltaDiscoveryRequest { node: Some(node), type_url, ..DeltaDiscoveryRequest::default() };
        requests.send(first).await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::with_origin(self.wire.clone(), origin());
        let call = client.delta_aggregated_resources(authorized(ReceiverStream::new(stream), token, cluster));
        Ok(Subscribed { responses: call.await?.into_inner(), requests })
    }
}

struct Subscribed {
    responses: Streaming<DeltaDiscoveryResponse>,
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
}

impl Subscribed {
    /// Reads and accepts pushes until one of them satisfies.
    async fn until(&mut self, wanted: impl Fn(&DeltaDiscoveryResponse) -> bool) -> DeltaDiscoveryResponse {
        loop {
            let message = tokio::time::timeout(Duration::from_secs(20), self.responses.message()).await;
            let push = message.unwrap().unwrap().unwrap();
            let accept = DeltaDiscoveryRequest {
                type_url: push.type_url.clone(),
                response_nonce: push.nonce.clone(),
                ..DeltaDiscoveryRequest::default()
            };
            self.requests.send(accept).await.unwrap();
            if wanted(&push) {
                return push;
            }
        }
    }
}

/// A node agent on each node, a global service, and a gateway.
async fn fill(cluster: &Running, name: &str) {
    let client = cluster.client();
    let network = json!({"topology.istio.io/network": name});
    let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "istio-system", "labels": network}});
    let account = |namespace: &str, name: &str| json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": name, "namespace": namespace}});
    let workload = |kind: &str, namespace: &str, name: &str| {
        let mut object = deployment(name, 1, "image");
        object["kind"] = kind.into();
        object["apiVersion"] = "apps/v1".into();
        object["metadata"]["namespace"] = namespace.into();
        object["spec"]["template"]["spec"]["serviceAccountName"] = name.into();
        object
    };
    for object in [
        namespace,
        account("istio-system", "ztunnel"),
        account("sample", "hello"),
        workload("DaemonSet", "istio-system", "ztunnel"),
        workload("Deployment", "sample", "hello"),
        json!({
            "kind": "Service", "apiVersion": "v1",
            "metadata": {"name": "hello", "namespace": "sample", "labels": {"istio.io/global": "true"}},
            "spec": {"selector": {"app": "hello"}, "ports": [{"port": 80}]},
        }),
        json!({
            "kind": "Gateway", "apiVersion": "gateway.networking.k8s.io/v1",
            "metadata": {"name": "gw", "namespace": "istio-system", "labels": network},
            "spec": {
                "gatewayClassName": "istio-east-west",
                "listeners": [{"port": 15008, "protocol": "HBONE", "tls": {"mode": "Terminate"}}],
            },
        }),
    ] {
        client.apply(&object).await.unwrap();
    }
    let path = "/apis/gateway.networking.k8s.io/v1/namespaces/istio-system/gateways/gw/status";
    let addresses = json!([{"type": "IPAddress", "value": "192.168.97.5"}]);
    client.merge_patch(path, &json!({"status": {"addresses": addresses}})).await.unwrap();
    for pod in client.list("/api/v1/namespaces/sample/pods").await.unwrap() {
        let path = format!("/api/v1/namespaces/sample/pods/{}/status", object::name(&pod));
        let ip = if name == "east" { "10.11.0.5" } else { "10.21.0.5" };
        client.merge_patch(&path, &json!({"status": {"phase": "Running", "podIP": ip}})).await.unwrap();
    }
}

async fn connect(address: SocketAddr, root: &str, tasks: &Tasks) -> Wire {
    let config = tls::client("root", root).unwrap();
    let mut config = rustls::ClientConfig::clone(&config);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let tls_stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    let executor = tls::OnTasks(tasks.clone());
    let (sender, connection) =
        hyper::client::conn::http2::handshake(executor, TokioIo::new(tls_stream)).await.unwrap();
    tasks.spawn("client", async move {
        let _ = connection.await;
    });
    Wire(sender)
}

fn origin() -> http::Uri {
    http::Uri::from_static("https://127.0.0.1")
}

fn authorized<T>(message: T, token: &str, cluster: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request.metadata_mut().insert("clusterid", cluster.parse().unwrap());
    request
}

fn text(value: &str) -> prost_types::Value {
    prost_types::Value { kind: Some(Kind::StringValue(value.to_owned())) }
}

fn has(push: &DeltaDiscoveryResponse, part: &str) -> bool {
    push.resources.iter().any(|resource| resource.name.contains(part))
}

#[tokio::test]
async fn agents_are_told_what_is_and_what_changes() {
    let mesh = TestMesh::new().await;
    let token = TestMesh::token(&mesh.east, "n1").await;
    let mut stream = mesh.subscribe(&token, "east").await.unwrap();
    let first = stream.until(|_| true).await;
    assert!(has(&first, "east//Pod/sample/hello-") && has(&first, "NetworkGateway/west/192.168.97.5/0"));
    assert!(has(&first, "west/SplitHorizonWorkload/istio-system/gw/192.168.97.5/sample/hello."));
    assert!(!has(&first, "west//Pod"));
    // West's service is no longer global: what led there goes.
    let path = "/api/v1/namespaces/sample/services/hello";
    let local = json!({"metadata": {"labels": {"istio.io/global": null}}});
    mesh.west.client().merge_patch(path, &local).await.unwrap();
    let gone = |push: &DeltaDiscoveryResponse| {
        push.removed_resources.iter().any(|name| name.contains("SplitHorizon"))
    };
    stream.until(gone).await;
    // The same control plane serves west's agents the view of west.
    let token = TestMesh::token(&mesh.west, "n1").await;
    let mut stream = mesh.subscribe(&token, "west").await.unwrap();
    let first = stream.until(|_| true).await;
    assert!(has(&first, "west//Pod/sample/hello-") && !has(&first, "east//Pod"));
}

#[tokio::test]
async fn an_entry_without_addresses_gets_one_that_agents_are_told() {
    let mesh = TestMesh::new().await;
    let client = mesh.east.client();
    let entry = json!({
        "kind": "ServiceEntry", "apiVersion": "networking.istio.io/v1",
        "metadata": {"name": "e", "namespace": "sample"},
        "spec": {
            "hosts": ["x.example"], "resolution": "STATIC", "endpoints": [{"address": "192.0.2.1"}],
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
        },
    });
    client.apply(&entry).await.unwrap();
    let token = TestMesh::token(&mesh.east, "n1").await;
    let mut stream = mesh.subscribe(&token, "east").await.unwrap();
    // The alias of the service is the address, on the network of the cluster.
    let alias = |push: &DeltaDiscoveryResponse| {
        let service = push.resources.iter().find(|resource| resource.name == "sample/x.example")?;
        service.aliases.first().cloned()
    };
    let push = stream.until(|push| alias(push).is_some()).await;
    let path = "/apis/networking.istio.io/v1/namespaces/sample/serviceentries/e";
    let stored = client.get(path).await.unwrap().unwrap();
    let address = object::text(&stored, "/status/addresses/0/value");
    assert!(address.starts_with("240.240."), "{stored}");
    assert_eq!(alias(&push), Some(format!("east/{address}")));
    // A refused caller gets the reason.
    let mut bad = entry;
    bad["spec"]["resolution"] = "NEVER".into();
    let outcome = client.apply(&bad).await.unwrap_err().to_string();
    assert!(outcome.contains("spec.resolution"), "{outcome}");
}

#[tokio::test]
async fn only_tokens_of_the_right_cluster_open_a_stream() {
    let mesh = TestMesh::new().await;
    let token = TestMesh::token(&mesh.east, "n1").await;
    for (token, cluster, says) in [
        (token.as_str(), "west", "cluster west refuses the token"),
        ("nonsense", "east", "no JWT of this cluster"),
        (token.as_str(), "north", "\"north\" is none of [\"east\", \"west\"]"),
    ] {
        let status = mesh.subscribe(token, cluster).await.err().unwrap();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().contains(says), "{status}");
    }
}

#[tokio::test]
async fn certificates_are_for_pods_of_the_callers_node() {
    let mesh = TestMesh::new().await;
    let identity = "spiffe://cluster.local/ns/sample/sa/hello";
    let pods = mesh.east.client().list("/api/v1/namespaces/sample/pods").await.unwrap();
    let here = object::text(&pods[0], "/spec/nodeName");
    let elsewhere = if here == "n1" { "n2" } else { "n1" };
    let token = TestMesh::token(&mesh.east, here).await;
    let chain = mesh.sign(&token, "east", identity).await.unwrap();
    assert_eq!(chain.len(), 3);
    assert!(chain.iter().all(|pem| pem.starts_with("-----BEGIN CERTIFICATE-----")));
    let stranger = TestMesh::token(&mesh.east, elsewhere).await;
    let status = mesh.sign(&stranger, "east", identity).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("no pod of service account sample/hello runs on node"), "{status}");
    let status = mesh.sign(&token, "east", "spiffe://elsewhere/ns/sample/sa/hello").await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let spec = serde_json::from_value(json!({"audiences": ["istio-ca"]})).unwrap();
    let own = mesh.east.client().token("sample", "hello", spec).await.unwrap();
    assert!(mesh.sign(&own, "east", identity).await.is_ok(), "an account may ask for itself");
    let status = mesh.sign(&own, "east", "spiffe://cluster.local/ns/sample/sa/default").await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn every_namespace_gets_the_root() {
    let mesh = TestMesh::new().await;
    for cluster in [&mesh.east, &mesh.west] {
        let kind = Collection::from(playground_k8s::manifest::Kind::named("ConfigMap").unwrap());
        let maps = Collection { fields: Some("metadata.name=istio-ca-root-cert".to_owned()), ..kind };
        let mut events = cluster.client().watch(maps, &cluster.tasks);
        let found = async {
            loop {
                match events.recv().await.unwrap() {
                    Event::Applied(map) if object::namespace(&map) == "sample" => {
                        return map;
                    }
                    _ => {}
                }
            }
        };
        let map = tokio::time::timeout(Duration::from_secs(20), found).await.unwrap();
        assert!(map["data"]["root-cert.pem"].as_str().unwrap().contains("BEGIN CERTIFICATE"));
    }
}
