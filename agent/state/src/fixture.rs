//! A small mesh for the tests of this crate.

use isthmus_model::service::{HealthPolicy, LbMode, LbScope};
use isthmus_model::{
    GatewayAddress, GatewayDestination, Health, LoadBalancer, NamespacedHostname, NetworkAddress, Protocol,
    Service, Workload,
};

use crate::{Batch, Options, Snapshot};

pub(crate) const NETWORK: &str = "east";
pub(crate) const REMOTE: &str = "west";

/// A pod in the mesh: namespace `ns`, service account `sa`, node `node-1`, on the own network.
pub(crate) fn pod(name: &str, address: &str) -> Workload {
    Workload {
        uid: format!("c//Pod/ns/{name}").into(),
        name: name.into(),
        namespace: "ns".into(),
        service_account: "sa".into(),
        addresses: vec![address.parse().unwrap()],
        network: NETWORK.into(),
        protocol: Protocol::Hbone,
        node: "node-1".into(),
        cluster_id: "c".into(),
        capacity: 1,
        ..Workload::default()
    }
}

/// A service in namespace `ns` with port 80 → 8080.
pub(crate) fn service(name: &str, vip: &str) -> Service {
    let vips = if vip.is_empty() { vec![] } else { vec![at(NETWORK, vip)] };
    Service {
        name: name.into(),
        namespace: "ns".into(),
        hostname: format!("{name}.ns.svc.cluster.local").into(),
        vips,
        cidr_vips: vec![],
        ports: [(80, 8080)].into(),
        subject_alt_names: vec![],
        waypoint: None,
        weighted_waypoints: vec![],
        load_balancer: None,
        ip_families: None,
        canonical: false,
        visibility: isthmus_model::Visibility::Public,
    }
}

pub(crate) fn balanced(mut service: Service, mode: LbMode, scopes: &[LbScope]) -> Service {
    service.load_balancer = Some(LoadBalancer {
        routing_preferences: scopes.to_vec(),
        mode,
        health_policy: HealthPolicy::OnlyHealthy,
    });
    service
}

/// Makes the workload an endpoint of the service, with the service's own ports.
pub(crate) fn serving(mut workload: Workload, service: &Service) -> Workload {
    workload.services.insert(service.key(), service.ports.clone());
    workload
}

pub(crate) fn unhealthy(mut workload: Workload) -> Workload {
    workload.status = Health::Unhealthy;
    workload
}

/// What stands for the endpoints of a service on the other network.
pub(crate) fn split_horizon(service: &Service, gateway: &str) -> Workload {
    let mut workload = serving(pod("split", "10.0.0.1"), service);
    workload.uid = format!("{REMOTE}/SplitHorizonWorkload/{}", service.hostname).into();
    workload.addresses.clear();
    workload.network = REMOTE.into();
    workload.network_gateway = Some(by_address(REMOTE, gateway));
    workload
}

/// The gateway of the other network.
pub(crate) fn network_gateway(address: &str) -> Workload {
    let mut workload = pod("gateway", address);
    workload.uid = format!("NetworkGateway/{REMOTE}/{address}/15008").into();
    workload.network = REMOTE.into();
    workload.service_account = "gateway-sa".into();
    workload.protocol = Protocol::Tcp;
    workload
}

pub(crate) fn at(network: &str, address: &str) -> NetworkAddress {
    NetworkAddress { network: network.into(), address: address.parse().unwrap() }
}

pub(crate) fn by_address(network: &str, address: &str) -> GatewayAddress {
    GatewayAddress { destination: GatewayDestination::Address(at(network, address)), hbone_mtls_port: 15008 }
}

pub(crate) fn by_name(name: &str) -> GatewayAddress {
    let name = NamespacedHostname::parse(name).unwrap();
    GatewayAddress { destination: GatewayDestination::Hostname(name), hbone_mtls_port: 15008 }
}

pub(crate) fn snapshot(workloads: &[Workload], services: &[Service]) -> Snapshot {
    let options = Options {
        own_network: NETWORK.into(),
        own_cluster: "c".into(),
        own_node: "node-1".into(),
        root_namespace: "istio-system".into(),
        ..Options::default()
    };
    let mut snapshot = Snapshot::new(options);
    let batch = Batch {
        upsert_workloads: workloads.to_vec(),
        upsert_services: services.to_vec(),
        ..Batch::default()
    };
    snapshot.apply(batch);
    snapshot
}

pub(crate) fn rng() -> fastrand::Rng {
    fastrand::Rng::with_seed(42)
}
