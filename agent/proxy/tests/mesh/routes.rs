//! Routes over real sockets: through a scripted waypoint, and to workloads that are known by their hostname only, with a
//! scripted resolver.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use isthmus_identity::CertSource as _;
use isthmus_kit::hbone::{HbonePeer, kind};
use isthmus_kit::tls;
use isthmus_model::{
    GatewayAddress, GatewayDestination, Hostname, NetworkAddress, Protocol, Service, Workload,
};
use isthmus_proxy::{Config, HostLookupError, HostResolver};
use isthmus_rt::BoxFuture;
use isthmus_rt::task::Tasks;
use tokio::net::TcpListener;

use crate::access_log::AccessLog;
use crate::test_mesh::*;

/// A resolver that knows one name.
struct FakeResolver {
    addresses: Vec<IpAddr>,
    asked: AtomicUsize,
}

impl HostResolver for FakeResolver {
    fn lookup<'a>(&'a self, hostname: &'a Hostname) -> BoxFuture<'a, Result<Vec<IpAddr>, HostLookupError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            match hostname.as_str() {
                "db.example.com" => Ok(self.addresses.clone()),
                _ => Err(HostLookupError::Refused { rcode: "NXDOMAIN".to_owned() }),
            }
        })
    }
}

fn named(network: &TestMesh, hostname: &str, protocol: Protocol) -> Workload {
    Workload {
        addresses: Vec::new(),
        hostname: hostname.into(),
        protocol,
        ..serving(network.workload("db", 2))
    }
}

#[tokio::test]
async fn a_workload_known_by_hostname_is_looked_up_once_per_connection() {
    for protocol in [Protocol::Hbone, Protocol::Tcp] {
        let block = Arc::new(AddressRange::claim());
        let addresses = vec!["2001:db8::1".parse().unwrap(), block.ip(2)];
        let names = Arc::new(FakeResolver { addresses, asked: AtomicUsize::new(0) });
        let network = TestMesh::with_resolver("east", &block, Config::default(), Arc::clone(&names) as _);
        let sleep = network.workload("sleep", 1);
        network.push(
            &[sleep.clone(), named(&network, "db.example.com", protocol)],
            &[network.service(10, &[])],
            &[],
        );
        let there = network.workload("db", 2);
        let app = network.echo(&there).await;
        let _server = (protocol == Protocol::Hbone).then(|| network.server(&there));
        let client = network.client(&sleep, SocketAddr::new(block.ip(10), SERVICE_PORT));
        let log = AccessLog::capture();
        for time in 1..=3 {
            assert_eq!(exchange(&mut client.dial().await, b"hello").await.unwrap(), b"hello");
            let line = log.next().await;
            let to = SocketAddr::new(block.ip(2), if protocol == Protocol::Hbone { HBONE } else { APP_PORT });
            assert!(
                line.contains(&format!("dst.addr={to} ")) && line.contains("dst.workload=\"db\""),
                "{line}"
            );
            // Caching is up to the resolver.
            assert_eq!(names.asked.load(Ordering::SeqCst), time);
        }
        let labels = ["hostname=\"db.example.com\"", "source_workload=\"sleep\""];
        assert_eq!((network.metric("istio_on_demand_dns_total", &labels), app.accepted()), (3, 3));
    }
}

/// Of two addresses of the name, nothing listens at one.
#[tokio::test]
async fn each_address_of_a_hostname_is_an_endpoint() {
    for protocol in [Protocol::Hbone, Protocol::Tcp] {
        let block = Arc::new(AddressRange::claim());
        let addresses = vec![block.ip(2), block.ip(3)];
        let names = Arc::new(FakeResolver { addresses, asked: AtomicUsize::new(0) });
        let network = TestMesh::with_resolver("east", &block, Config::default(), names);
        let sleep = network.workload("sleep", 1);
        network.push(
            &[sleep.clone(), named(&network, "db.example.com", protocol)],
            &[network.service(10, &[])],
            &[],
        );
        let there = network.workload("db", 2);
        let app = network.echo(&there).await;
        let _server = (protocol == Protocol::Hbone).then(|| network.server(&there));
        let client = network.client(&sleep, SocketAddr::new(block.ip(10), SERVICE_PORT));
        let log = AccessLog::capture();
        let mut retried = Vec::new();
        for _ in 0..40 {
            assert_eq!(exchange(&mut client.dial().await, b"hello").await.unwrap(), b"hello");
            let line = log.next().await;
            if line.contains("tries=2") {
                retried.push(line);
            }
        }
        assert_eq!(app.accepted(), 40);
        // The first connection that meets the dead address goes on to the other one, and the dead one is left out.
        let dead = format!("{}:", block.ip(3));
        let first = retried.first().expect("a connection met the dead address");
        assert!(
            first.contains("ejected for 1s") && retried.iter().all(|line| line.contains(&dead)),
            "{retried:?}"
        );
        assert!(retried.len() < 10, "{retried:?}");
    }
}

#[tokio::test]
async fn a_hostname_without_an_address_fails_with_one_log_line() {
    let block = Arc::new(AddressRange::claim());
    let names = Arc::new(FakeResolver { addresses: Vec::new(), asked: AtomicUsize::new(0) });
    let network = TestMesh::with_resolver("east", &block, Config::default(), names);
    let sleep = network.workload("sleep", 1);
    network.push(
        &[sleep.clone(), named(&network, "gone.example.com", Protocol::Hbone)],
        &[network.service(10, &[])],
        &[],
    );
    let client = network.client(&sleep, SocketAddr::new(block.ip(10), SERVICE_PORT));
    let log = AccessLog::capture();
    assert!(closed(&mut client.dial().await).await.is_err());
    let line = log.next().await;
    for part in [
        "message=connection failed",
        "src.addr=127.",
        &format!("dst.addr={}:{SERVICE_PORT}", block.ip(10)),
        "workload east//Pod/sample/db has no address and its hostname gone.example.com does not resolve: \
         the DNS server answered NXDOMAIN",
    ] {
        assert!(line.contains(part), "{part} is missing: {line}");
    }
}

/// The CONNECTs that a waypoint got: the client and the headers.
type Asked = Arc<Mutex<Vec<(String, Vec<(String, String)>)>>>;

/// A waypoint that accepts every CONNECT and sends back what it gets.
struct Waypoint {
    asked: Asked,
    _tasks: Tasks,
}

impl Waypoint {
    async fn play(network: &TestMesh, workload: &Workload) -> Self {
        let certificate = network.certs.certificate(&workload.identity()).await.unwrap();
        let listener = TcpListener::bind((workload.addresses[0], HBONE)).await.unwrap();
        let (asked, tasks) = (Asked::default(), Tasks::new("waypoint"));
        let seen = Arc::clone(&asked);
        tasks.spawn("waypoint", async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let server_tls = certificate.server_tls();
                let session = tls::accept(server_tls.config(), tcp).await.unwrap();
                let client = server_tls.peer(session.get_ref().1).unwrap().id().to_string();
                let mut peer = HbonePeer::server(session).await.unwrap();
                // One stream after the other is enough here.
                while let Ok(frame) = peer.next_of_streams().await {
                    let answered = match frame.kind {
                        kind::HEADERS => {
                            seen.lock().unwrap().push((client.clone(), frame.headers().unwrap()));
                            peer.headers(frame.stream, &[(":status", "200")], false).await
                        }
                        kind::DATA => peer.data(frame.stream, &frame.payload, frame.ends_stream()).await,
                        _ => Ok(()),
                    };
                    answered.unwrap();
                }
            }
        });
        Self { asked, _tasks: tasks }
    }

    /// The last CONNECT: client identity, authority and `forwarded`.
    fn last(&self) -> (String, String, String) {
        let asked = self.asked.lock().unwrap();
        let (client, headers) = asked.last().unwrap();
        let header = |name| headers.iter().find(|(key, _)| key == name).unwrap().1.clone();
        (client.clone(), header(":authority"), header("forwarded"))
    }
}

/// The service of the waypoint.
fn waypoint_service(network: &TestMesh) -> Service {
    Service {
        name: "waypoint".into(),
        hostname: "waypoint.sample.svc.cluster.local".into(),
        vips: vec![NetworkAddress { network: network.name.clone(), address: network.block.ip(20) }],
        ports: [(HBONE, HBONE)].into(),
        ..network.service(20, &[])
    }
}

fn reference(destination: GatewayDestination) -> Option<GatewayAddress> {
    Some(GatewayAddress { destination, hbone_mtls_port: HBONE })
}

#[tokio::test]
async fn a_waypoint_gets_the_original_destination_and_the_clients_identity() {
    let block = Arc::new(AddressRange::claim());
    let network = TestMesh::new("east", &block);
    let service = waypoint_service(&network);
    let mut workload = network.workload("wp", 21);
    workload.services.insert(service.key(), [(HBONE, HBONE)].into());
    let waypoint = Waypoint::play(&network, &workload).await;
    let sleep = network.workload("sleep", 1);
    // It does not listen: a connection that bypasses the waypoint fails.
    let server = serving(network.workload("helloworld", 2));
    let at = |last| {
        GatewayDestination::Address(NetworkAddress { network: network.name.clone(), address: block.ip(last) })
    };
    let vip = SocketAddr::new(block.ip(10), SERVICE_PORT);
    let pod = SocketAddr::new(block.ip(2), APP_PORT);
    let by_name = GatewayDestination::Hostname(service.key());
    for (what, by_service, by_workload, to) in [
        ("a service's waypoint by hostname", reference(by_name.clone()), None, vip),
        ("a service's waypoint by its address", reference(at(20)), None, vip),
        ("a service's waypoint by its pod's address", reference(at(21)), None, vip),
        ("a workload's waypoint by hostname", None, reference(by_name), pod),
        ("a workload's waypoint by its address", None, reference(at(20)), pod),
    ] {
        let behind = Workload { waypoint: by_workload, ..server.clone() };
        let called = Service { waypoint: by_service, ..network.service(10, &[]) };
        network.push(&[sleep.clone(), workload.clone(), behind], &[called, service.clone()], &[]);
        let client = network.client(&sleep, to);
        let log = AccessLog::capture();
        let mut stream = client.dial().await;
        let source = stream.local_addr().unwrap();
        assert_eq!(exchange(&mut stream, b"hello").await.unwrap(), b"hello", "{what}");
        let host = if to == vip { format!(";host={HOSTNAME}") } else { String::new() };
        let want = (sleep.identity().to_string(), to.to_string(), format!("for=\"{source}\"{host}"));
        assert_eq!(waypoint.last(), want, "{what}");
        let line = log.next().await;
        let goes = format!("dst.addr={}:{HBONE} dst.hbone_addr={to} ", block.ip(21));
        assert!(line.contains(&goes) && line.contains("dst.workload=\"wp\""), "{what}: {line}");
        client.proxy.stop(std::time::Duration::ZERO).await;
    }
}
