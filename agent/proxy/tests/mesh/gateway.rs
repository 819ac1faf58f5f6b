//! Two networks joined by their gateways only.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_hbone::{ConnectStatus, Head, OpenError};
use isthmus_model::{
    Action, Authority, GatewayAddress, GatewayDestination, NamespacedHostname, NetworkAddress, PolicyKey,
    Protocol, SpiffeId, TrustDomain, Workload,
};
use isthmus_proxy::gateway::{Gateway, GatewayInfo, GatewayListeners, Globals, SniRoutes, Traffic};
use isthmus_proxy::{BoundListener, Carrier};
use isthmus_sys::socket::Sockets;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::test_mesh::*;

/// These services are global, and no others.
struct GlobalServices(Vec<NamespacedHostname>);

impl Globals for GlobalServices {
    fn is_global(&self, service: &NamespacedHostname) -> bool {
        self.0.contains(service)
    }
}

const GATEWAY: u8 = 200;

pub(crate) fn gateway_workload(network: &TestMesh) -> Workload {
    Workload { protocol: Protocol::Tcp, ..network.workload("eastwest", GATEWAY) }
}

fn bound(address: SocketAddr) -> BoundListener {
    BoundListener::from_std(std::net::TcpListener::bind(address).unwrap(), false).unwrap()
}

pub(crate) fn start(
    network: &TestMesh,
    listeners: GatewayListeners,
    global: &[NamespacedHostname],
) -> Gateway {
    let pod = pod_ref(&gateway_workload(network));
    let info = GatewayInfo { pod, trust_domain: TrustDomain::default() };
    let globals = Arc::new(GlobalServices(global.to_vec()));
    Gateway::start(Arc::clone(&network.ctx), info, listeners, globals, Sockets::host(), network.watch.clone())
}

pub(crate) fn hbone_only(network: &TestMesh) -> GatewayListeners {
    let hbone = bound(SocketAddr::new(network.block.ip(GATEWAY), HBONE));
    GatewayListeners { hbone: Some(hbone), ..GatewayListeners::default() }
}

/// East calls a service that only west serves.
pub(crate) struct TwoNetworks {
    pub(crate) east: TestMesh,
    pub(crate) west: TestMesh,
    pub(crate) sleep: Workload,
    pub(crate) helloworld: Workload,
}

fn joined() -> TwoNetworks {
    let block = Arc::new(AddressRange::claim());
    join(TestMesh::new("east", &block), TestMesh::new("west", &block))
}

/// Joins two given networks.
pub(crate) fn join(east: TestMesh, west: TestMesh) -> TwoNetworks {
    let (sleep, helloworld) = (east.workload("sleep", 1), serving(west.workload("helloworld", 2)));
    let identities = [helloworld.identity()];
    west.push(&[helloworld.clone(), gateway_workload(&west)], &[west.service(20, &identities)], &[]);
    let gateway = gateway_workload(&west);
    let at = NetworkAddress { network: west.name.clone(), address: gateway.addresses[0] };
    let reference = GatewayAddress { destination: GatewayDestination::Address(at), hbone_mtls_port: HBONE };
    let split = serving(Workload {
        uid: "west/SplitHorizonWorkload/eastwest/helloworld".into(),
        name: "split".into(),
        addresses: Vec::new(),
        network_gateway: Some(reference),
        service_account: "default".into(),
        ..west.workload("helloworld", 2)
    });
    let pseudo = Workload { uid: "NetworkGateway/west/gw/15008".into(), ..gateway };
    east.push(&[sleep.clone(), split, pseudo], &[east.service(10, &identities)], &[]);
    TwoNetworks { east, west, sleep, helloworld }
}

pub(crate) fn vip(network: &TestMesh) -> SocketAddr {
    SocketAddr::new(network.block.ip(10), SERVICE_PORT)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_endpoint_sees_the_clients_identity_through_the_gateway() {
    let TwoNetworks { east, west, sleep, helloworld } = joined();
    west.push(&[], &[], &[policy("only-sleep", Action::Allow, &sleep.identity())]);
    let thief = east.workload("thief", 3);
    east.push(std::slice::from_ref(&thief), &[], &[]);
    let app = west.echo(&helloworld).await;
    let server = west.server(&helloworld);
    let gateway = start(&west, hbone_only(&west), &[service_key()]);
    let client = east.client(&sleep, vip(&east));
    let mut stream = client.dial().await;
    ping(&mut stream).await;
    assert_eq!(client.proxy.connections().outbound[0].protocol, Carrier::DoubleHbone);
    assert_eq!(server.proxy.connections().inbound.len(), 1);
    let through = gateway.connections().outbound;
    assert_eq!(through[0].original_dst, Some(format!("{HOSTNAME}:{SERVICE_PORT}")));
    assert_eq!(through[0].actual_dst, SocketAddr::new(helloworld.addresses[0], HBONE));
    assert_eq!(exchange(&mut stream, b"across").await.unwrap(), b"across");

    let near = [
        "reporter=\"source\"",
        "source_workload=\"sleep\"",
        "destination_workload=\"helloworld\"",
        "destination_cluster=\"west\"",
        "destination_principal=\"spiffe://cluster.local/ns/sample/sa/helloworld\"",
        "response_flags=\"-\"",
    ];
    east.metric_becomes(1, "istio_tcp_connections_closed_total", &near).await;
    let far = [
        "reporter=\"destination\"",
        "source_workload=\"sleep\"",
        "source_cluster=\"east\"",
        "source_principal=\"spiffe://cluster.local/ns/sample/sa/sleep\"",
    ];
    west.metric_becomes(1, "istio_tcp_connections_closed_total", &far).await;
    assert_eq!(west.metric("istio_tcp_received_bytes_total", &far), 7);

    let between = [
        "reporter=\"gateway\"",
        "source_workload=\"sleep\"",
        "source_cluster=\"east\"",
        "response_flags=\"-\"",
    ];
    west.metric_becomes(1, "istio_tcp_connections_closed_total", &between).await;

    // The gateway admits the other client, and the pod refuses it.
    let refused = east.client(&thief, vip(&east));
    assert!(closed(&mut refused.dial().await).await.is_err());
    assert_eq!(app.accepted(), 1);
    let denied = ["reporter=\"destination\"", "sa/thief\"", "response_flags=\"DENY\""];
    west.metric_becomes(1, "istio_tcp_connections_failed_total", &denied).await;
    west.remove_policy(&PolicyKey::from("sample/only-sleep"));
    ping(&mut refused.dial().await).await;
}

#[tokio::test]
async fn the_gateway_forwards_only_to_global_services_by_name() {
    let TwoNetworks { west, sleep, helloworld, .. } = joined();
    let app = west.echo(&helloworld).await;
    let _server = west.server(&helloworld);
    let ask = async |authority: &str| {
        let to = SocketAddr::new(west.block.ip(GATEWAY), HBONE);
        let expected = gateway_workload(&west).identity();
        let tunnel = west.tunnel(&sleep.identity(), to, &expected).await;
        tunnel.open(&Head::new(authority.parse().unwrap())).await.map(|_| ())
    };
    let (pod, named) = (app.address.to_string(), format!("{HOSTNAME}:{SERVICE_PORT}"));
    {
        let closed = start(&west, hbone_only(&west), &[]);
        assert_eq!(
            ask(&named).await,
            Err(OpenError::Status(ConnectStatus::SERVICE_UNAVAILABLE)),
            "not global"
        );
        closed.stop(Duration::ZERO).await;
    }
    let _gateway = start(&west, hbone_only(&west), &[service_key()]);
    assert_eq!(ask(&named).await, Ok(()));
    assert_eq!(ask(&pod).await, Err(OpenError::Status(ConnectStatus::BAD_REQUEST)), "an address");
    assert_eq!(
        ask(&format!("{}:{HBONE}", helloworld.addresses[0])).await,
        Err(OpenError::Status(ConnectStatus::BAD_REQUEST))
    );
    assert_eq!(
        ask("nobody.sample.svc.cluster.local:80").await,
        Err(OpenError::Status(ConnectStatus::SERVICE_UNAVAILABLE)),
        "unknown"
    );
    assert_eq!(
        ask(&format!("{HOSTNAME}:1")).await,
        Err(OpenError::Status(ConnectStatus::SERVICE_UNAVAILABLE)),
        "no such port"
    );
    assert_eq!(
        ask(&format!("x{named}")).await,
        Err(OpenError::Status(ConnectStatus::SERVICE_UNAVAILABLE)),
        "not the exact name"
    );
    assert_eq!(app.accepted(), 0, "no plaintext reaches the application");
}

#[tokio::test]
async fn the_gateway_answers_once_it_is_connected() {
    let TwoNetworks { west, sleep, .. } = joined();
    // Nothing listens on the endpoint's HBONE port.
    let _gateway = start(&west, hbone_only(&west), &[service_key()]);
    let to = SocketAddr::new(west.block.ip(GATEWAY), HBONE);
    let tunnel = west.tunnel(&sleep.identity(), to, &gateway_workload(&west).identity()).await;
    let head = Head::new(Authority::Host { hostname: HOSTNAME.into(), port: SERVICE_PORT });
    assert_eq!(tunnel.open(&head).await.unwrap_err(), OpenError::Status(ConnectStatus::SERVICE_UNAVAILABLE));
    let labels =
        ["reporter=\"gateway\"", "response_flags=\"CONNECT\"", "destination_service_name=\"helloworld\""];
    west.metric_becomes(1, "istio_tcp_connections_failed_total", &labels).await;
}

#[tokio::test]
async fn an_endpoint_without_the_services_identity_gets_no_bytes() {
    let TwoNetworks { east, west, sleep, helloworld } = joined();
    let app = west.echo(&helloworld).await;
    let _server = west.server(&helloworld);
    let _gateway = start(&west, hbone_only(&west), &[service_key()]);
    let other: SpiffeId = "spiffe://cluster.local/ns/sample/sa/another".parse().unwrap();
    east.push(&[], &[east.service(10, &[other])], &[]);
    let client = east.client(&sleep, vip(&east));
    assert!(closed(&mut client.dial().await).await.is_err());
    assert_eq!(app.accepted(), 0);
    let labels = ["reporter=\"source\"", "response_flags=\"TLS_FAILURE\""];
    east.metric_becomes(1, "istio_tcp_connections_failed_total", &labels).await;
}

/// The first flight of a TLS client.
fn service_target() -> Authority {
    Authority::Host { hostname: HOSTNAME.into(), port: SERVICE_PORT }
}

fn client_hello(name: &str) -> Vec<u8> {
    let config = rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty());
    let name = name.to_owned().try_into().unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config.with_no_client_auth()), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn tls_is_forwarded_by_server_name_byte_for_byte() {
    let TwoNetworks { west, helloworld, .. } = joined();
    let istiod = Echo::listen(SocketAddr::new(west.block.ip(60), 0), &west.tasks).await;
    let app = west.echo(&helloworld).await;
    let _server = west.server(&helloworld);
    let listener = bound(SocketAddr::new(west.block.ip(GATEWAY), 0));
    let address = listener.local_addr().unwrap();
    let routes = SniRoutes {
        names: HashMap::from([
            ("istiod.istio-system.svc".to_owned(), Authority::Ip(istiod.address).into()),
            ("hello.example".to_owned(), service_target().into()),
        ]),
        ..SniRoutes::default()
    };
    let listeners = GatewayListeners { sni: vec![(listener, routes)], ..GatewayListeners::default() };
    let _gateway = start(&west, listeners, &[]);
    for (name, upstream) in [("istiod.istio-system.svc", &istiod), ("Hello.Example", &app)] {
        let mut hello = client_hello(name);
        hello.extend_from_slice(b"and more");
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert_eq!(exchange(&mut stream, &hello).await.unwrap(), hello, "{name}");
        assert_eq!(upstream.accepted(), 1, "{name}");
    }
    let over_hbone =
        ["reporter=\"destination\"", "sa/eastwest\"", "connection_security_policy=\"mutual_tls\""];
    west.metric_becomes(1, "istio_tcp_connections_closed_total", &over_hbone).await;
    for refused in [client_hello("other.example"), b"GET / HTTP/1.1\r\n\r\n".to_vec()] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&refused).await.unwrap();
        let mut answer = Vec::new();
        assert!(stream.read_to_end(&mut answer).await.is_err() && answer.is_empty());
    }
    assert_eq!((istiod.accepted(), app.accepted()), (1, 1));
}

#[tokio::test]
async fn plain_tcp_is_forwarded_to_the_service_over_hbone() {
    let TwoNetworks { west, helloworld, .. } = joined();
    let app = west.echo(&helloworld).await;
    let _server = west.server(&helloworld);
    let listener = bound(SocketAddr::new(west.block.ip(GATEWAY), 0));
    let address = listener.local_addr().unwrap();
    let target = service_target().into();
    let listeners = GatewayListeners { tcp: vec![(listener, target)], ..GatewayListeners::default() };
    let _gateway = start(&west, listeners, &[]);
    let mut stream = TcpStream::connect(address).await.unwrap();
    assert_eq!(exchange(&mut stream, b"plain").await.unwrap(), b"plain");
    assert_eq!(app.accepted(), 1);
    let labels = ["reporter=\"gateway\"", "sa/eastwest\"", "destination_service_name=\"helloworld\""];
    west.metric_becomes(1, "istio_tcp_connections_closed_total", &labels).await;
}

/// A connection to a sidecar's name is let through to global services only.
#[tokio::test]
async fn a_sidecars_server_name_leads_to_global_services_only() {
    let TwoNetworks { west, helloworld, .. } = joined();
    let app = west.echo(&helloworld).await;
    let _server = west.server(&helloworld);
    let hello = client_hello(&format!("outbound_.{SERVICE_PORT}_._.{HOSTNAME}"));
    for (at, global) in [(0, vec![service_key()]), (1, Vec::new())] {
        let listener = bound(SocketAddr::new(west.block.ip(GATEWAY + at), 0));
        let address = listener.local_addr().unwrap();
        let routes = SniRoutes { auto_passthrough: true, ..SniRoutes::default() };
        let listeners = GatewayListeners { sni: vec![(listener, routes)], ..GatewayListeners::default() };
        let _gateway = start(&west, listeners, &global);
        let mut stream = TcpStream::connect(address).await.unwrap();
        let answer = exchange(&mut stream, &hello).await;
        assert_eq!(answer.ok(), (!global.is_empty()).then(|| hello.clone()), "{global:?}");
    }
    assert_eq!(app.accepted(), 1);
}

#[tokio::test]
async fn listeners_come_and_go_without_the_connections_of_others() {
    let TwoNetworks { west, .. } = joined();
    let (one, other) = (
        Echo::listen(SocketAddr::new(west.block.ip(60), 0), &west.tasks).await,
        Echo::listen(SocketAddr::new(west.block.ip(61), 0), &west.tasks).await,
    );
    let gateway = start(&west, GatewayListeners::default(), &[]);
    let open = |echo: &Echo| {
        let listener = bound(SocketAddr::new(west.block.ip(GATEWAY), 0));
        let address = listener.local_addr().unwrap();
        let traffic = Traffic::Tcp(Authority::Ip(echo.address).into());
        gateway.open(listener, traffic, west.watch.clone());
        address
    };
    let (stays, goes) = (open(&one), open(&one));
    let mut kept = TcpStream::connect(stays).await.unwrap();
    let mut drained = TcpStream::connect(goes).await.unwrap();
    for stream in [&mut kept, &mut drained] {
        ping(stream).await;
    }
    // New routes are for new connections.
    let moved = Traffic::Tcp(Authority::Ip(other.address).into());
    assert!(gateway.reroute(stays.port(), &moved));
    assert_eq!(gateway.listeners()[&stays.port()], moved);
    ping(&mut kept).await;
    let mut fresh = TcpStream::connect(stays).await.unwrap();
    assert_eq!(exchange(&mut fresh, b"fresh").await.unwrap(), b"fresh");
    assert_eq!((one.accepted(), other.accepted()), (2, 1));
    assert!(!gateway.reroute(stays.port(), &Traffic::Hbone), "another kind of traffic is another listener");

    let closed = gateway.close(goes.port(), Duration::from_secs(60)).unwrap();
    let (done, ended) = tokio::sync::oneshot::channel();
    west.tasks.spawn("closing listener", async move {
        closed.await;
        let _ = done.send(());
    });
    let refused = async || TcpStream::connect(goes).await.is_err().then_some(());
    isthmus_kit::wait::within(Duration::from_secs(15), refused).await.unwrap();
    for stream in [&mut kept, &mut drained] {
        ping(stream).await;
    }
    drop(drained);
    tokio::time::timeout(Duration::from_secs(15), ended).await.unwrap().unwrap();
    assert_eq!(gateway.listeners().into_keys().collect::<Vec<_>>(), [stays.port()]);
}
