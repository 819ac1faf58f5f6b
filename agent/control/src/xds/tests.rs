use std::path::PathBuf;
use std::time::Duration;

use isthmus_identity::KeyExchange;
use isthmus_kit::istiod::{AdsStream, Istiod, raw_resource, resource, response};
use isthmus_kit::pki::Ca;
use isthmus_kit::wait::eventually;
use isthmus_proto::{security, type_url, workload};
use isthmus_rt::drain;
use isthmus_rt::ready::Readiness;
use isthmus_rt::task::Tasks;
use tokio::sync::mpsc;
use tonic::Status;

use super::*;
use crate::channel::{RootSource, TokenSource};
use crate::metrics::Metrics;

const ADDRESS: &str = type_url::ADDRESS;
const AUTHORIZATION: &str = type_url::AUTHORIZATION;

/// Hands every push to the test.
struct Pushes(mpsc::UnboundedSender<session::Push>);

impl Sink for Pushes {
    fn addresses(&self, upserts: Vec<Resource>, removed: Vec<String>) {
        let _ = self.0.send(session::Push::Addresses { upserts, removed });
    }

    fn policies(
        &self,
        upserts: Vec<(PolicyKey, Policy)>,
        removed: Vec<PolicyKey>,
        refused: Vec<RefusedPolicy>,
    ) {
        let _ = self.0.send(session::Push::Policies { upserts, removed, refused });
    }
}

struct Client {
    pushes: mpsc::UnboundedReceiver<session::Push>,
    readiness: Readiness,
    rejections: Rejections,
    metrics: isthmus_rt::metrics::Registry,
    drain: drain::Drain,
    tasks: Tasks,
}

impl Client {
    fn start(server: Server) -> Self {
        let (sink, pushes) = mpsc::unbounded_channel();
        let (readiness, rejections) = (Readiness::default(), Rejections::default());
        let metrics = isthmus_rt::metrics::Registry::default();
        let (drain, watch) = drain::channel();
        let tasks = Tasks::new("test");
        let node = Node { pod_name: "z".into(), namespace: "istio-system".into(), ..Node::default() };
        let config = Config { server, node, rejections: rejections.clone(), budget: 64 << 20 };
        let ready = readiness.block("xds");
        tasks.spawn("xds", run(config, Arc::new(Pushes(sink)), ready, Metrics::register(&metrics), watch));
        Self { pushes, readiness, rejections, metrics, drain, tasks }
    }

    async fn push(&mut self) -> session::Push {
        tokio::time::timeout(Duration::from_secs(20), self.pushes.recv())
            .await
            .expect("a push")
            .expect("running")
    }

    async fn uids(&mut self) -> Vec<String> {
        let session::Push::Addresses { upserts, .. } = self.push().await else { panic!("not addresses") };
        let uid = |resource: Resource| match resource {
            Resource::Workload(workload) => workload.uid.to_string(),
            Resource::Service(service) => service.key().to_string(),
        };
        upserts.into_iter().map(uid).collect()
    }

    fn counts(&self, line: &str) -> bool {
        self.metrics.encode().unwrap().lines().any(|have| have == line)
    }
}

async fn istiod() -> (Arc<Ca>, Istiod) {
    let ca = Arc::new(Ca::new("root").unwrap());
    let istiod = Istiod::start(&ca).await.unwrap();
    (ca, istiod)
}

fn server(istiod: &Istiod) -> Server {
    Server {
        address: istiod.url(),
        roots: RootSource::Pem(istiod.root_pem().to_owned()),
        token: TokenSource::Literal("t0ken".to_owned()),
        cluster_id: "east".into(),
        headers: vec![("X-Extra".to_owned(), "yes".to_owned())],
        alt_hostname: None,
        key_exchange: KeyExchange::default(),
    }
}

fn workload(uid: &str, address: &[u8]) -> workload::Address {
    let workload = workload::Workload {
        uid: uid.to_owned(),
        addresses: vec![address.to_vec()],
        ..workload::Workload::default()
    };
    workload::Address { r#type: Some(workload::address::Type::Workload(workload)) }
}

fn good(uid: &str, version: &str) -> isthmus_proto::discovery::Resource {
    resource(ADDRESS, uid, version, &workload(uid, &[10, 0, 0, 1]))
}

/// A folder of one test, removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("isthmus-xds-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One length-delimited protobuf field.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).unwrap();
    assert!(length < 128 && number < 16, "one byte each");
    [&[number << 3 | 2, length], bytes].concat()
}

#[tokio::test]
async fn the_wire_format_is_that_of_delta_ads() {
    let (_, mut istiod) = istiod().await;
    let mut client = Client::start(server(&istiod));
    let mut stream = istiod.next_stream().await.unwrap();
    assert_eq!(stream.header("authorization"), Some("Bearer t0ken"));
    assert_eq!(stream.header("clusterid"), Some("east"));
    assert_eq!(stream.header("x-extra"), Some("yes"));
    for url in [ADDRESS, AUTHORIZATION] {
        let raw = stream.recv_raw().await.unwrap();
        assert_eq!(raw[0], 0x0a, "node is field 1");
        assert!(raw.ends_with(&field(2, url.as_bytes())), "type_url is field 2 and nothing comes after it");
    }
    // Address{workload: Workload{uid: "u", name: "n", addresses: [10.0.0.9], tunnel_protocol: HBONE}}
    let uid = [&[0xa2, 0x01, 0x01], b"u".as_slice()].concat();
    let workload = [field(1, b"n"), field(3, &[10, 0, 0, 9]), vec![0x28, 0x01], uid].concat();
    let address = field(1, &workload);
    let any = [field(1, ADDRESS.as_bytes()), field(2, &address)].concat();
    let resource = [field(1, b"7"), field(2, &any), field(3, b"u")].concat();
    let push =
        [field(2, &resource), field(4, ADDRESS.as_bytes()), field(5, b"nonce"), field(6, b"gone")].concat();
    stream.push_raw(push);
    let session::Push::Addresses { upserts, removed } = client.push().await else { panic!("addresses") };
    let [Resource::Workload(workload)] = upserts.as_slice() else { panic!("one workload: {upserts:?}") };
    assert_eq!((workload.uid.as_str(), workload.name.as_str()), ("u", "n"));
    assert_eq!(workload.protocol, isthmus_model::Protocol::Hbone);
    assert_eq!(workload.addresses, ["10.0.0.9".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(removed, ["gone"]);
    let ack = [field(2, ADDRESS.as_bytes()), field(6, b"nonce")].concat();
    assert_eq!(stream.recv_raw().await.unwrap(), ack);
    let url = format!("{{url=\"{ADDRESS}\"}}");
    assert!(client.counts(&format!("istio_xds_message_total{url} 1")));
    assert!(client.counts(&format!("istio_xds_message_bytes_total{url} {}", address.len())));
}

#[tokio::test]
async fn a_bad_resource_is_nacked_by_name_and_does_not_block_readiness() {
    let (_, mut istiod) = istiod().await;
    let mut client = Client::start(server(&istiod));
    let mut stream = istiod.next_stream().await.unwrap();
    stream.subscriptions().await.unwrap();
    let bad = resource(ADDRESS, "w2", "1", &workload("w2", &[1, 2, 3]));
    stream.push(&response(ADDRESS, "1", vec![good("w1", "1"), bad], &[]));
    assert_eq!(client.uids().await, ["w1"]);
    let nack = stream.recv().await.unwrap();
    let message = nack.error_detail.unwrap().message;
    assert!(message.starts_with("w2: ") && message.contains("3 bytes"), "{message}");
    assert_eq!(nack.response_nonce, "1");
    assert_eq!(client.readiness.pending(), ["xds"]);

    let policy = raw_resource(AUTHORIZATION, "ns/p", "", vec![0xff]);
    stream.push(&response(AUTHORIZATION, "2", vec![policy], &[]));
    let session::Push::Policies { refused, .. } = client.push().await else { panic!("policies") };
    assert_eq!(refused, [RefusedPolicy { key: "ns/p".into(), outline: None }]);
    stream.recv().await.unwrap();
    assert!(client.readiness.pending().is_empty());
    let names: Vec<String> = client.rejections.list().into_iter().map(|rejection| rejection.name).collect();
    assert_eq!(names, ["w2", "ns/p"]);
    assert!(client.counts(&format!("isthmus_xds_rejected_resources{{url=\"{ADDRESS}\"}} 1")));

    stream.push(&response(ADDRESS, "3", vec![good("w2", "2")], &["w1"]));
    assert_eq!(client.uids().await, ["w2"]);
    assert!(stream.recv().await.unwrap().error_detail.is_none());
    assert!(client.counts(&format!("isthmus_xds_rejected_resources{{url=\"{ADDRESS}\"}} 0")));
}

/// Brings a client to where it holds `w1` at version 5 and `ns/p` without a version.
async fn holding(istiod: &mut Istiod, client: &mut Client) -> AdsStream {
    let mut stream = istiod.next_stream().await.unwrap();
    stream.subscriptions().await.unwrap();
    stream.push(&response(ADDRESS, "1", vec![good("w1", "5")], &[]));
    let policy = security::Authorization { name: "p".to_owned(), ..security::Authorization::default() };
    stream.push(&response(AUTHORIZATION, "2", vec![resource(AUTHORIZATION, "ns/p", "", &policy)], &[]));
    client.push().await;
    client.push().await;
    stream.recv().await.unwrap();
    stream.recv().await.unwrap();
    stream
}

async fn resumes(istiod: &mut Istiod) -> AdsStream {
    let mut stream = istiod.next_stream().await.unwrap();
    let [addresses, policies] = stream.subscriptions().await.unwrap();
    assert!(addresses.node.is_some() && policies.node.is_some());
    let held = |name: &str, version: &str| [(name.to_owned(), version.to_owned())].into_iter().collect();
    assert_eq!(addresses.initial_resource_versions, held("w1", "5"));
    assert_eq!(policies.initial_resource_versions, held("ns/p", ""));
    stream
}

#[tokio::test]
async fn every_stream_end_is_counted_and_the_next_stream_resumes() {
    let (ca, mut istiod) = istiod().await;
    let mut client = Client::start(server(&istiod));
    let count =
        |reason: &str, n: u32| format!("istio_xds_connection_terminations_total{{reason=\"{reason}\"}} {n}");

    holding(&mut istiod, &mut client).await.end();
    let stream = resumes(&mut istiod).await;
    assert!(client.counts(&count("Complete", 1)));

    // Bytes that are no message.
    stream.push_raw(vec![0xff; 16]);
    let stream = resumes(&mut istiod).await;
    assert!(client.counts(&count("Error", 1)));

    stream.fail(Status::permission_denied("no"));
    let stream = resumes(&mut istiod).await;
    assert!(client.counts(&count("Error", 2)));

    // The server goes away, connection and all, and comes back.
    let address = istiod.address();
    drop(stream);
    istiod.stop().await;
    connection_failure_is_counted(&client).await;
    let mut istiod = Istiod::start_at(address, &ca).await.unwrap();
    resumes(&mut istiod).await;
    assert!(client.pushes.try_recv().is_err(), "what is known stays in force");
    assert!(client.readiness.pending().is_empty());
}

async fn connection_failure_is_counted(client: &Client) {
    eventually(
        || client.metrics.encode().unwrap().contains("reason=\"ConnectionError\""),
        || "no failed connection is counted".to_owned(),
    )
    .await;
}

#[tokio::test]
async fn a_missing_token_is_retried_and_the_token_is_read_for_each_stream() {
    let folder = Folder::new("token");
    let token = folder.0.join("istio-token");
    let (_, mut istiod) = istiod().await;
    let client = Client::start(Server { token: TokenSource::File(token.clone()), ..server(&istiod) });
    connection_failure_is_counted(&client).await;
    std::fs::write(&token, "first\n").unwrap();
    let stream = istiod.next_stream().await.unwrap();
    assert_eq!(stream.header("authorization"), Some("Bearer first"));
    std::fs::write(&token, "second\n").unwrap();
    stream.end();
    let stream = istiod.next_stream().await.unwrap();
    assert_eq!(stream.header("authorization"), Some("Bearer second"));
}

#[tokio::test]
async fn roots_are_read_for_each_connection() {
    let folder = Folder::new("roots");
    let roots = folder.0.join("root-cert.pem");
    std::fs::write(&roots, Ca::new("another").unwrap().root_pem()).unwrap();
    let (_, mut istiod) = istiod().await;
    let client = Client::start(Server { roots: RootSource::File(roots.clone()), ..server(&istiod) });
    connection_failure_is_counted(&client).await;
    std::fs::write(&roots, istiod.root_pem()).unwrap();
    istiod.next_stream().await.unwrap();
}

#[tokio::test]
async fn the_server_may_present_the_alternative_hostname() {
    let ca = Arc::new(Ca::new("root").unwrap());
    // An address that is not in its certificate.
    let mut istiod = Istiod::start_at("127.0.0.2:0".parse().unwrap(), &ca).await.unwrap();
    let client = Client::start(server(&istiod));
    connection_failure_is_counted(&client).await;
    drop(client);
    let alt_hostname = Some("istiod.istio-system.svc".to_owned());
    let _client = Client::start(Server { alt_hostname, ..server(&istiod) });
    istiod.next_stream().await.unwrap();
}

#[tokio::test]
async fn the_drain_ends_the_client() {
    let (_, mut istiod) = istiod().await;
    let client = Client::start(server(&istiod));
    let mut stream = istiod.next_stream().await.unwrap();
    stream.subscriptions().await.unwrap();
    assert_eq!(client.drain.shutdown(Duration::from_secs(20)).await, drain::Outcome::Drained);
    assert!(stream.recv().await.is_err());
    client.tasks.wait().await;
}

#[tokio::test]
async fn a_stream_survives_root_rotation_until_no_root_trusts_its_server() {
    let folder = Folder::new("rotation");
    let roots = folder.0.join("root-cert.pem");
    let (ca, mut istiod) = istiod().await;
    let next = Ca::new("next").unwrap();
    std::fs::write(&roots, ca.root_pem()).unwrap();
    let mut client = Client::start(Server { roots: RootSource::File(roots.clone()), ..server(&istiod) });
    let mut stream = istiod.next_stream().await.unwrap();
    stream.subscriptions().await.unwrap();
    std::fs::write(&roots, ca.root_pem() + &next.root_pem()).unwrap();
    stream.push(&response(ADDRESS, "1", vec![good("east//Pod/n/a", "1")], &[]));
    assert_eq!(client.uids().await, ["east//Pod/n/a"]);
    stream.recv().await.unwrap();
    std::fs::write(&roots, next.root_pem()).unwrap();
    assert!(stream.recv().await.is_err(), "it is ended by the client");
    assert!(!client.metrics.encode().unwrap().contains("reason=\"Reconnect\""), "nor before");
    std::fs::write(&roots, ca.root_pem()).unwrap();
    istiod.next_stream().await.unwrap();
}
