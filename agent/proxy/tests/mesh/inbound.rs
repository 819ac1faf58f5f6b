//! CONNECTs to the HBONE port, apart from policies.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use isthmus_hbone::{ConnectStatus, Head, OpenError};
use isthmus_kit::wait::eventually;
use isthmus_model::workload::{ApplicationTunnel, TunnelKind};
use isthmus_model::{
    Authority, GatewayAddress, GatewayDestination, NamespacedHostname, NetworkAddress, Service,
};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

use crate::test_mesh::*;

/// A waypoint that terminates HBONE itself: its agent accepts CONNECTs for the services behind it only.
#[tokio::test]
async fn a_waypoint_accepts_only_addresses_of_services_behind_it() {
    let network = TestMesh::new("east", &Arc::new(AddressRange::claim()));
    let name = NamespacedHostname {
        namespace: "sample".into(),
        hostname: "waypoint.sample.svc.cluster.local".into(),
    };
    let waypoint = Service {
        name: "waypoint".into(),
        hostname: name.hostname.clone(),
        vips: vec![NetworkAddress { network: network.name.clone(), address: network.block.ip(20) }],
        ports: BTreeMap::from([(HBONE, HBONE)]),
        ..network.service(20, &[])
    };
    let behind = Service {
        waypoint: Some(GatewayAddress {
            destination: GatewayDestination::Hostname(name.clone()),
            hbone_mtls_port: HBONE,
        }),
        ..network.service(10, &[])
    };
    let other = Service {
        name: "other".into(),
        hostname: "other.sample.svc.cluster.local".into(),
        ..network.service(11, &[])
    };
    let sleep = network.workload("sleep", 1);
    let mut pod = network.workload("waypoint", 2);
    pod.services.insert(name, BTreeMap::from([(HBONE, HBONE)]));
    network.push(&[sleep.clone(), pod.clone()], &[waypoint, behind, other], &[]);
    let app = Echo::listen(SocketAddr::new(pod.addresses[0], SERVICE_PORT), &network.tasks).await;
    let _server = network.server(&pod);
    let to = SocketAddr::new(pod.addresses[0], HBONE);
    let tunnel = network.tunnel(&sleep.identity(), to, &pod.identity()).await;
    let ask = async |last: u8| {
        let authority = Authority::Ip(SocketAddr::new(network.block.ip(last), SERVICE_PORT));
        tunnel.open(&Head::new(authority)).await.map(|_| ())
    };
    assert_eq!(ask(10).await, Ok(()));
    assert_eq!(
        ask(11).await,
        Err(OpenError::Status(ConnectStatus::BAD_REQUEST)),
        "the service has no waypoint"
    );
    assert_eq!(ask(77).await, Err(OpenError::Status(ConnectStatus::BAD_REQUEST)), "the address is unknown");
    eventually(|| app.accepted() == 1, || format!("{} connections reached the application", app.accepted()))
        .await;
}

/// A waypoint that lets its agent terminate HBONE learns from a PROXY header what the CONNECT said.
#[tokio::test]
async fn an_application_that_expects_it_is_told_of_destination_and_client() {
    let network = TestMesh::new("east", &Arc::new(AddressRange::claim()));
    let app = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = Some(app.local_addr().unwrap().port());
    let sleep = network.workload("sleep", 1);
    let mut pod = network.workload("waypoint", 2);
    pod.application_tunnel = Some(ApplicationTunnel { protocol: TunnelKind::Proxy, port });
    network.push(&[sleep.clone(), pod.clone()], &[], &[]);
    let _server = network.server(&pod);
    let to = SocketAddr::new(pod.addresses[0], HBONE);
    let tunnel = network.tunnel(&sleep.identity(), to, &pod.identity()).await;
    let destination = Authority::Ip(SocketAddr::from(([192, 0, 2, 1], 80)));
    let (_stream, _) = tunnel.open(&Head::new(destination)).await.unwrap();
    let header = async {
        let (mut connection, _) = app.accept().await.unwrap();
        let (mut start, mut length) = ([0; 14], [0; 2]);
        connection.read_exact(&mut start).await.unwrap();
        connection.read_exact(&mut length).await.unwrap();
        let mut body = vec![0; u16::from_be_bytes(length).into()];
        connection.read_exact(&mut body).await.unwrap();
        (start, body)
    };
    let (start, body) = tokio::time::timeout(TIMEOUT, header).await.expect("no header arrives");
    // Version 2, TCP over IPv4: source and destination addresses, their ports, then the identity.
    assert_eq!(&start, b"\r\n\r\n\0\r\nQUIT\n\x21\x11");
    assert_eq!((&body[4..8], &body[10..12]), ([192, 0, 2, 1].as_slice(), 80_u16.to_be_bytes().as_slice()));
    assert!(body.ends_with(sleep.identity().to_string().as_bytes()), "{body:?}");
}
