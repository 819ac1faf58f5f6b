//! A gateway whose first endpoint does not accept retries another one before it answers: the client sees one tunnel.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::{
    GatewayAddress, GatewayDestination, NamespacedHostname, NetworkAddress, Protocol, TrustDomain, Workload,
};
use isthmus_proxy::gateway::{Gateway, GatewayInfo, GatewayListeners, Globals};
use isthmus_proxy::{BoundListener, Config};
use isthmus_sys::socket::Sockets;

use crate::test_mesh::*;

struct All;

impl Globals for All {
    fn is_global(&self, _: &NamespacedHostname) -> bool {
        true
    }
}

const GATEWAY: u8 = 200;

/// East calls a service of west with two endpoints: one listens, the other does not and is nearly always chosen first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_retries_another_endpoint_before_it_answers() {
    let block = Arc::new(AddressRange::claim());
    let config = Config { dial_deadline: Duration::from_millis(500), ..Config::default() };
    let (east, west) = (TestMesh::new("east", &block), TestMesh::with_config("west", &block, config));
    let account = |workload: Workload| Workload { service_account: "helloworld".into(), ..workload };
    let gone = account(Workload { capacity: u32::MAX, ..serving(west.workload("gone", 3)) });
    let there = account(serving(west.workload("helloworld", 2)));
    let identities = [there.identity()];
    let gateway = Workload { protocol: Protocol::Tcp, ..west.workload("eastwest", GATEWAY) };
    west.push(&[gone, there.clone(), gateway.clone()], &[west.service(20, &identities)], &[]);
    let at = NetworkAddress { network: west.name.clone(), address: gateway.addresses[0] };
    let reference = GatewayAddress { destination: GatewayDestination::Address(at), hbone_mtls_port: HBONE };
    let split = serving(Workload {
        uid: "west/SplitHorizonWorkload/eastwest/helloworld".into(),
        addresses: Vec::new(),
        network_gateway: Some(reference),
        ..west.workload("split", 2)
    });
    let sleep = east.workload("sleep", 1);
    let pseudo = Workload { uid: "NetworkGateway/west/gw/15008".into(), ..gateway.clone() };
    east.push(&[sleep.clone(), split, pseudo], &[east.service(10, &identities)], &[]);

    let hbone = SocketAddr::new(gateway.addresses[0], HBONE);
    let hbone = BoundListener::from_std(std::net::TcpListener::bind(hbone).unwrap(), false).unwrap();
    let listeners = GatewayListeners { hbone: Some(hbone), ..GatewayListeners::default() };
    let gateway_info = GatewayInfo { pod: pod_ref(&gateway), trust_domain: TrustDomain::default() };
    let world = Arc::clone(&west.ctx);
    let _gateway =
        Gateway::start(world, gateway_info, listeners, Arc::new(All), Sockets::host(), west.watch.clone());
    let (app, _server) = (west.echo(&there).await, west.server(&there));
    let client = east.client(&sleep, SocketAddr::new(block.ip(10), SERVICE_PORT));
    for _ in 0..5 {
        assert_eq!(exchange(&mut client.dial().await, b"hello").await.unwrap(), b"hello");
    }
    assert_eq!(app.accepted(), 5);
    // One retry at the gateway, none at the client.
    assert_eq!(west.metric("isthmus_connect_retries_total", &["cause=\"refused\""]), 1);
    assert_eq!(west.metric("isthmus_ejections_total", &["role=\"endpoint\""]), 1);
    assert!(!east.registry.encode().unwrap().contains("isthmus_connect_retries_total{"));
    let labels = ["reporter=\"gateway\"", "destination_workload=\"helloworld\"", "response_flags=\"-\""];
    west.metric_becomes(5, "istio_tcp_connections_closed_total", &labels).await;
}
