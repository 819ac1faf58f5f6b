//! What arrives on the HBONE port, beside what a policy says of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_hbone::{ConnectStatus, Head, OpenError};
use isthmus_kit::wait::eventually;
use isthmus_model::{
    Authority, GatewayAddress, GatewayDestination, NamespacedHostname, NetworkAddress, Service,
};

use crate::world::*;

/// A waypoint that terminates HBONE by itself: its agent takes what is for the services behind it, and nothing else.
#[tokio::test]
async fn a_plain_waypoint_takes_connections_for_those_behind_it() {
    let network = Network::new("east", &Arc::new(Block::claim()));
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
        "nobody sends that one through a waypoint"
    );
    assert_eq!(
        ask(77).await,
        Err(OpenError::Status(ConnectStatus::BAD_REQUEST)),
        "nor an address that is nobody's"
    );
    eventually(|| app.seen() == 1, || format!("{} connections reached it", app.seen())).await;
}
