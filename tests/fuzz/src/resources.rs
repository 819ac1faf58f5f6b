//! Resources and responses of a control plane, from decisions.

use isthmus_proto::discovery::{DeltaDiscoveryResponse, Resource};
use isthmus_proto::security::{self, string_match::MatchType};
use isthmus_proto::type_url;
use isthmus_proto::workload::{self as proto, address, gateway_address::Destination};
use prost::Message;

use crate::Choices;

const NETWORKS: [&str; 3] = ["east", "west", ""];
const NAMESPACES: [&str; 3] = ["a", "b", "istio-system"];
const NAMES: [&str; 4] = ["web", "db", "gateway", "waypoint"];
const HOSTS: [&str; 6] = [
    "web.a.svc.cluster.local",
    "db.b.svc.cluster.local",
    "gateway.istio-system.svc.cluster.local",
    "waypoint.a.svc.cluster.local",
    "*.example.com",
    "www.example.com",
];
const ACCOUNTS: [&str; 3] = ["web", "db", ""];
const NODES: [&str; 3] = ["node-1", "node-2", ""];
const UIDS: [&str; 8] = [
    "east//Pod/a/web-1",
    "east//Pod/a/web-2",
    "west//Pod/a/web-3",
    "east//Pod/b/db-1",
    "east/networking.istio.io/WorkloadEntry/a/vm",
    "west/SplitHorizonWorkload/istio-system/gateway/10.0.0.9/web.a.svc.cluster.local",
    "NetworkGateway/west/10.0.0.9/15008",
    "east//Pod/istio-system/waypoint-1",
];

/// The addresses that anything can have.
pub const ADDRESSES: [&[u8]; 8] = [
    &[10, 0, 0, 1],
    &[10, 0, 0, 2],
    &[10, 0, 0, 9],
    &[10, 96, 0, 1],
    &[10, 96, 0, 2],
    &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1],
    &[127, 0, 0, 1],
];

fn bytes(choices: &mut Choices<'_>) -> Vec<u8> {
    if choices.rarely(24) {
        let length = usize::from(choices.byte() % 20);
        return choices.bytes(length).to_vec();
    }
    choices.one(&ADDRESSES).to_vec()
}

fn at(choices: &mut Choices<'_>) -> proto::NetworkAddress {
    proto::NetworkAddress {
        network: choices.name(&NETWORKS),
        address: bytes(choices),
        length: choices.rarely(4).then(|| choices.number()),
    }
}

fn gateway(choices: &mut Choices<'_>) -> proto::GatewayAddress {
    let destination = match choices.byte() % 8 {
        0 => None,
        1..=3 => Some(Destination::Address(at(choices))),
        _ => Some(Destination::Hostname(proto::NamespacedHostname {
            namespace: choices.name(&NAMESPACES),
            hostname: choices.name(&HOSTS),
        })),
    };
    proto::GatewayAddress { destination, hbone_mtls_port: choices.number() }
}

fn ports(choices: &mut Choices<'_>) -> Vec<proto::Port> {
    choices.some(3, |choices| proto::Port {
        service_port: if choices.rarely(3) { choices.number() } else { 80 },
        target_port: if choices.rarely(3) { choices.number() } else { 8_080 },
        app_protocol: i32::from(choices.byte()),
    })
}

/// An enum's value: mostly a known one.
fn kind(choices: &mut Choices<'_>, known: u8) -> i32 {
    i32::from(if choices.rarely(24) { choices.byte() } else { choices.byte() % known })
}

/// The gateway of the other network, as everything that has one refers to it.
fn network_gateway() -> proto::GatewayAddress {
    let address = proto::NetworkAddress {
        network: "west".to_owned(),
        address: vec![10, 0, 0, 9],
        ..proto::NetworkAddress::default()
    };
    proto::GatewayAddress { destination: Some(Destination::Address(address)), hbone_mtls_port: 15_008 }
}

/// A workload. Those that stand for another network are mostly valid.
pub fn workload(choices: &mut Choices<'_>) -> proto::Workload {
    let mut workload = any_workload(choices);
    if choices.rarely(8) {
        return workload;
    }
    if workload.uid.starts_with("NetworkGateway/") {
        workload.network = "west".to_owned();
        workload.addresses = vec![vec![10, 0, 0, 9]];
        workload.tunnel_protocol = proto::TunnelProtocol::Hbone.into();
    }
    if workload.uid.contains("/SplitHorizonWorkload/") {
        workload.network = "west".to_owned();
        workload.addresses.clear();
        workload.tunnel_protocol = proto::TunnelProtocol::Hbone.into();
        workload.network_gateway = Some(network_gateway());
        let port = proto::Port { service_port: 80, target_port: 8_080, app_protocol: 0 };
        let ports = proto::PortList { ports: vec![port] };
        workload.services.insert(format!("a/{}", HOSTS[0]), ports);
    }
    workload
}

fn any_workload(choices: &mut Choices<'_>) -> proto::Workload {
    let membership = |choices: &mut Choices<'_>| {
        let key = format!("{}/{}", choices.name(&NAMESPACES), choices.name(&HOSTS));
        (key, proto::PortList { ports: ports(choices) })
    };
    proto::Workload {
        uid: choices.name(&UIDS),
        name: choices.name(&["web-1", "web-2", "db-1"]),
        namespace: choices.name(&NAMESPACES),
        addresses: choices.some(2, bytes),
        hostname: if choices.rarely(8) { choices.name(&HOSTS) } else { String::new() },
        network: choices.name(&NETWORKS),
        tunnel_protocol: kind(choices, 2),
        trust_domain: choices.name(&["", "cluster.local", "other"]),
        service_account: choices.name(&ACCOUNTS),
        waypoint: choices.rarely(6).then(|| gateway(choices)),
        network_gateway: choices.rarely(3).then(|| gateway(choices)),
        node: choices.name(&NODES),
        canonical_name: choices.name(&NAMES),
        canonical_revision: choices.name(&["v1", "v2"]),
        workload_type: kind(choices, 4),
        workload_name: choices.name(&NAMES),
        native_tunnel: choices.rarely(8),
        application_tunnel: choices
            .rarely(8)
            .then(|| proto::ApplicationTunnel { protocol: kind(choices, 2), port: choices.number() }),
        services: choices.some(3, membership).into_iter().collect(),
        authorization_policies: choices.some(2, |choices| format!("{}/p", choices.one(&NAMESPACES))),
        status: kind(choices, 2),
        cluster_id: choices.name(&["east", "west", ""]),
        locality: choices.rarely(2).then(|| proto::Locality {
            region: choices.name(&["r1", "r2"]),
            zone: choices.name(&["z1", "z2"]),
            subzone: String::new(),
        }),
        network_mode: kind(choices, 2),
        capacity: choices.rarely(4).then(|| choices.number()),
        ..proto::Workload::default()
    }
}

/// A service.
pub fn service(choices: &mut Choices<'_>) -> proto::Service {
    proto::Service {
        name: choices.name(&NAMES),
        namespace: choices.name(&NAMESPACES),
        hostname: choices.name(&HOSTS),
        addresses: choices.some(3, at),
        ports: ports(choices),
        subject_alt_names: choices
            .some(2, |choices| choices.name(&["spiffe://cluster.local/ns/a/sa/web", "x"])),
        waypoint: choices.rarely(6).then(|| gateway(choices)),
        load_balancing: choices.rarely(3).then(|| proto::LoadBalancing {
            routing_preference: choices.some(6, |choices| kind(choices, 7)),
            mode: kind(choices, 4),
            health_policy: kind(choices, 2),
        }),
        ip_families: kind(choices, 4),
        canonical: choices.rarely(2),
        weighted_waypoints: choices.some(2, |choices| proto::WeightedWaypoint {
            destination: (!choices.rarely(8)).then(|| gateway(choices)),
            weight: choices.number(),
        }),
        visibility: kind(choices, 2),
        ..proto::Service::default()
    }
}

fn texts(choices: &mut Choices<'_>, of: &[&str]) -> Vec<security::StringMatch> {
    choices.some(2, |choices| {
        let text = choices.name(of);
        let match_type = match choices.byte() % 6 {
            0 => None,
            1 => Some(MatchType::Prefix(text)),
            2 => Some(MatchType::Suffix(text)),
            3 => Some(MatchType::Presence(security::Presence {})),
            _ => Some(MatchType::Exact(text)),
        };
        security::StringMatch { match_type }
    })
}

fn ranges(choices: &mut Choices<'_>) -> Vec<security::Address> {
    choices.some(2, |choices| security::Address { address: bytes(choices), length: choices.number() % 34 })
}

/// A policy.
pub fn policy(choices: &mut Choices<'_>) -> security::Authorization {
    let one = |choices: &mut Choices<'_>| security::Match {
        namespaces: texts(choices, &NAMESPACES),
        not_namespaces: texts(choices, &NAMESPACES),
        principals: texts(choices, &["cluster.local/ns/a/sa/web", "cluster.local"]),
        source_ips: ranges(choices),
        not_destination_ips: ranges(choices),
        destination_ports: choices.some(2, Choices::number),
        service_accounts: choices.some(1, |choices| security::ServiceAccountMatch {
            namespace: choices.name(&NAMESPACES),
            service_account: choices.name(&ACCOUNTS),
        }),
        ..security::Match::default()
    };
    let clause = |choices: &mut Choices<'_>| security::Clause { matches: choices.some(2, one) };
    security::Authorization {
        name: "p".to_owned(),
        namespace: choices.name(&NAMESPACES),
        scope: kind(choices, 3),
        action: kind(choices, 2),
        rules: choices.some(2, |choices| security::Rule { clauses: choices.some(2, clause) }),
        dry_run: choices.rarely(6),
        ..security::Authorization::default()
    }
}

/// A response to begin with: a service whose only endpoints are behind the gateway of the other network, and a client.
#[must_use]
pub fn first() -> DeltaDiscoveryResponse {
    let port = proto::Port { service_port: 80, target_port: 8_080, app_protocol: 0 };
    let vip = proto::NetworkAddress {
        network: "east".to_owned(),
        address: vec![10, 96, 0, 1],
        ..proto::NetworkAddress::default()
    };
    let service = proto::Service {
        name: "web".to_owned(),
        namespace: "a".to_owned(),
        hostname: HOSTS[0].to_owned(),
        addresses: vec![vip],
        ports: vec![port],
        subject_alt_names: vec!["spiffe://cluster.local/ns/a/sa/web".to_owned()],
        ..proto::Service::default()
    };
    let hbone = |uid: &str, network: &str| proto::Workload {
        uid: uid.to_owned(),
        name: "one".to_owned(),
        namespace: "a".to_owned(),
        network: network.to_owned(),
        tunnel_protocol: proto::TunnelProtocol::Hbone.into(),
        ..proto::Workload::default()
    };
    let client = proto::Workload { addresses: vec![vec![10, 0, 0, 2]], ..hbone(UIDS[0], "east") };
    let far = proto::Workload {
        network_gateway: Some(network_gateway()),
        services: [(format!("a/{}", HOSTS[0]), proto::PortList { ports: vec![port] })].into(),
        ..hbone(UIDS[5], "west")
    };
    let gateway = proto::Workload { addresses: vec![vec![10, 0, 0, 9]], ..hbone(UIDS[6], "west") };
    let named = |name: String, what: address::Type| Resource {
        name,
        resource: Some(prost_types::Any {
            type_url: type_url::ADDRESS.to_owned(),
            value: proto::Address { r#type: Some(what) }.encode_to_vec(),
        }),
        ..Resource::default()
    };
    let workloads = [client, far, gateway].map(|one| named(one.uid.clone(), address::Type::Workload(one)));
    let service = named(format!("a/{}", HOSTS[0]), address::Type::Service(service));
    DeltaDiscoveryResponse {
        type_url: type_url::ADDRESS.to_owned(),
        resources: workloads.into_iter().chain([service]).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

/// A response: resources that are mostly valid and correctly named, and names of removed ones.
pub fn response(choices: &mut Choices<'_>) -> DeltaDiscoveryResponse {
    let kind = choices.one(&[type_url::ADDRESS, type_url::ADDRESS, type_url::AUTHORIZATION, "of/another"]);
    let resources = choices.some(6, |choices| resource(choices, kind));
    let removed = |choices: &mut Choices<'_>| match choices.byte() % 2 {
        0 => choices.name(&UIDS),
        _ => format!("{}/{}", choices.name(&NAMESPACES), choices.name(&HOSTS)),
    };
    DeltaDiscoveryResponse {
        type_url: kind.to_owned(),
        resources,
        removed_resources: choices.some(3, removed),
        nonce: "n".to_owned(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn resource(choices: &mut Choices<'_>, kind: &str) -> Resource {
    let (name, message) = if kind == type_url::AUTHORIZATION {
        let policy = policy(choices);
        (format!("{}/p", policy.namespace), policy.encode_to_vec())
    } else if choices.rarely(3) {
        let service = service(choices);
        let name = format!("{}/{}", service.namespace, service.hostname);
        (name, proto::Address { r#type: Some(address::Type::Service(service)) }.encode_to_vec())
    } else {
        let workload = workload(choices);
        (
            workload.uid.clone(),
            proto::Address { r#type: Some(address::Type::Workload(workload)) }.encode_to_vec(),
        )
    };
    let url = if choices.rarely(32) { "of/another" } else { kind };
    Resource {
        name: if choices.rarely(32) { choices.name(&UIDS) } else { name },
        version: choices.name(&["", "1", "2"]),
        resource: (!choices.rarely(32))
            .then(|| prost_types::Any { type_url: url.to_owned(), value: damaged(choices, message) }),
        ..Resource::default()
    }
}

/// The bytes of a message, rarely with some of them changed, cut off or doubled.
pub fn damaged(choices: &mut Choices<'_>, mut message: Vec<u8>) -> Vec<u8> {
    if message.is_empty() || !choices.rarely(10) {
        return message;
    }
    for _ in 0..=choices.byte() % 4 {
        let place = usize::from(choices.byte()) * 257 % message.len().max(1);
        match choices.byte() % 4 {
            0 => message.truncate(place),
            1 => message.insert(place.min(message.len()), choices.byte()),
            2 => message.extend_from_within(place..),
            _ => {
                if let Some(byte) = message.get_mut(place) {
                    *byte ^= choices.byte();
                }
            }
        }
    }
    message
}
