use isthmus_proto::security::{self, string_match::MatchType};
use isthmus_proto::workload::{self as proto, gateway_address::Destination};

use super::*;
use crate::name::{Hostname, NamespacedHostname};
use crate::policy::{Action, Match, Scope, StringMatch};
use crate::service::{HealthPolicy, IpFamilies, LbMode, LbScope, Visibility};
use crate::workload::{ApplicationTunnel, Health, NetworkMode, Protocol, TunnelKind, WorkloadType};

const MAPPED: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];

fn port(service_port: u32, target_port: u32) -> proto::Port {
    proto::Port { service_port, target_port, app_protocol: 0 }
}

fn by_address(bytes: &[u8], port: u32) -> proto::GatewayAddress {
    proto::GatewayAddress {
        destination: Some(Destination::Address(proto::NetworkAddress {
            network: "n".into(),
            address: bytes.to_vec(),
            length: None,
        })),
        hbone_mtls_port: port,
    }
}

fn by_name(namespace: &str, hostname: &str) -> proto::GatewayAddress {
    proto::GatewayAddress {
        destination: Some(Destination::Hostname(proto::NamespacedHostname {
            namespace: namespace.into(),
            hostname: hostname.into(),
        })),
        hbone_mtls_port: 15008,
    }
}

fn plain_workload() -> proto::Workload {
    proto::Workload { uid: "c//Pod/ns/p".into(), ..Default::default() }
}

fn plain_service() -> proto::Service {
    proto::Service { hostname: "a.ns.svc.cluster.local".into(), ..Default::default() }
}

fn workload_with(change: impl FnOnce(&mut proto::Workload)) -> Result<Workload, WireError> {
    let mut wire = plain_workload();
    change(&mut wire);
    workload::read(wire, &mut Interner::default())
}

fn service_with(change: impl FnOnce(&mut proto::Service)) -> Result<Service, WireError> {
    let mut wire = plain_service();
    change(&mut wire);
    service::read(wire, &mut Interner::default())
}

fn policy_with(change: impl FnOnce(&mut security::Match)) -> Result<Policy, WireError> {
    let mut wire = security::Match::default();
    change(&mut wire);
    let rules = vec![security::Rule { clauses: vec![security::Clause { matches: vec![wire] }] }];
    policy(security::Authorization { name: "p".into(), namespace: "ns".into(), rules, ..Default::default() })
}

#[test]
fn absent_fields_of_a_workload_have_their_defaults() {
    let workload = workload_with(|_| {}).unwrap();
    assert_eq!(workload.identity().to_string(), "spiffe://cluster.local/ns//sa/default");
    assert_eq!(workload.cluster_id.as_str(), "Kubernetes");
    assert_eq!(workload.capacity, 1);
    assert_eq!(workload.protocol, Protocol::Tcp);
    assert_eq!(workload.status, Health::Healthy);
    assert_eq!(workload.network_mode, NetworkMode::Standard);
}

#[test]
fn a_full_workload_is_read() {
    let workload = workload_with(|wire| {
        wire.name = "p".into();
        wire.namespace = "ns".into();
        wire.addresses = vec![vec![10, 0, 0, 1], MAPPED.to_vec(), vec![0x20; 16]];
        wire.network = "east".into();
        wire.tunnel_protocol = 1;
        wire.trust_domain = "td".into();
        wire.service_account = "sa".into();
        wire.waypoint = Some(by_name("ns", "waypoint.ns.svc.cluster.local"));
        wire.network_gateway = Some(by_address(&[192, 168, 0, 1], 0));
        wire.workload_type = 2;
        wire.application_tunnel = Some(proto::ApplicationTunnel { protocol: 1, port: 15088 });
        wire.services.insert("ns/a".into(), proto::PortList { ports: vec![port(80, 8080), port(81, 0)] });
        wire.authorization_policies = vec!["ns/p".into()];
        wire.status = 1;
        wire.cluster_id = "c".into();
        wire.locality =
            Some(proto::Locality { region: "r".into(), zone: "z".into(), subzone: String::new() });
        wire.network_mode = 1;
        wire.capacity = Some(0);
    })
    .unwrap();
    let addresses: Vec<String> = workload.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.1", "10.0.0.1", "2020:2020:2020:2020:2020:2020:2020:2020"]);
    assert_eq!(workload.protocol, Protocol::Hbone);
    assert_eq!(workload.identity().to_string(), "spiffe://td/ns/ns/sa/sa");
    assert_eq!(workload.waypoint.unwrap().destination.to_string(), "ns/waypoint.ns.svc.cluster.local");
    let gateway = workload.network_gateway.unwrap();
    assert_eq!((gateway.destination.to_string().as_str(), gateway.hbone_mtls_port), ("n/192.168.0.1", 15008));
    assert_eq!(workload.workload_type, WorkloadType::Pod);
    let tunnel = ApplicationTunnel { protocol: TunnelKind::Proxy, port: Some(15088) };
    assert_eq!(workload.application_tunnel, Some(tunnel));
    let ports = &workload.services[&NamespacedHostname::parse("ns/a").unwrap()];
    assert_eq!(ports.iter().collect::<Vec<_>>(), [(&80, &8080), (&81, &0)]);
    assert_eq!((workload.status, workload.network_mode), (Health::Unhealthy, NetworkMode::HostNetwork));
    assert_eq!(workload.capacity, 0);
}

#[test]
fn invalid_fields_of_a_workload_are_named() {
    type Change = fn(&mut proto::Workload);
    let cases: [(Change, &str); 13] = [
        (|w| w.uid.clear(), "uid: missing"),
        (|w| w.addresses = vec![vec![1, 2, 3]], "addresses: 3 bytes are not an IP address (4 or 16 are)"),
        (|w| w.addresses = vec![vec![]], "addresses: 0 bytes are not an IP address (4 or 16 are)"),
        (|w| w.tunnel_protocol = 2, "tunnel_protocol: 2 is not supported"),
        (|w| w.tunnel_protocol = 9, "tunnel_protocol: 9 is not supported"),
        (|w| w.waypoint = Some(proto::GatewayAddress::default()), "waypoint: missing"),
        (|w| w.network_gateway = Some(proto::GatewayAddress::default()), "network_gateway: missing"),
        (|w| w.waypoint = Some(by_address(&[1], 1)), "waypoint: 1 bytes are not an IP address (4 or 16 are)"),
        (
            |w| w.network_gateway = Some(by_address(&[1, 2, 3, 4], 80_544)),
            "network_gateway: 80544 is not a port (0 to 65535)",
        ),
        (
            |w| w.application_tunnel = Some(proto::ApplicationTunnel { protocol: 7, port: 1 }),
            "application_tunnel.protocol: 7 is not supported",
        ),
        (
            |w| w.application_tunnel = Some(proto::ApplicationTunnel { protocol: 0, port: 65_536 }),
            "application_tunnel.port: 65536 is not a port (0 to 65535)",
        ),
        (
            |w| drop(w.services.insert("noslash".into(), proto::PortList::default())),
            "services: \"noslash\" is not <namespace>/<hostname>",
        ),
        (
            |w| drop(w.services.insert("a/b".into(), proto::PortList { ports: vec![port(65_616, 80)] })),
            "services.ports: 65616 is not a port (0 to 65535)",
        ),
    ];
    for (change, want) in cases {
        assert_eq!(workload_with(change).unwrap_err().to_string(), want);
    }
}

#[test]
fn unknown_values_of_a_workload_have_safe_defaults() {
    let workload = workload_with(|wire| {
        wire.workload_type = 99;
        wire.status = 99;
        wire.network_mode = 99;
        wire.extensions = vec![proto::Extension { name: "new".into(), config: None }];
    })
    .unwrap();
    assert_eq!(workload.workload_type, WorkloadType::Deployment);
    assert_eq!(workload.status, Health::Unhealthy);
    assert_eq!(workload.network_mode, NetworkMode::Standard);
}

#[test]
fn a_full_service_is_read() {
    let vip = |address: &[u8], length| proto::NetworkAddress {
        network: "n".into(),
        address: address.to_vec(),
        length,
    };
    let service = service_with(|wire| {
        wire.namespace = "ns".into();
        wire.addresses = vec![
            vip(&[10, 0, 0, 1], None),
            vip(&[10, 0, 0, 2], Some(32)),
            vip(&[10, 9, 8, 7], Some(16)),
            vip(&MAPPED, Some(128)),
            vip(&MAPPED, Some(104)),
        ];
        wire.ports = vec![port(80, 8080), port(443, 0)];
        wire.subject_alt_names = vec!["spiffe://td/ns/a/sa/b".into(), "not.spiffe".into()];
        wire.waypoint = Some(by_address(&MAPPED, 15008));
        wire.load_balancing =
            Some(proto::LoadBalancing { routing_preference: vec![6, 1, 77, 5], mode: 2, health_policy: 1 });
        wire.ip_families = 2;
        wire.canonical = true;
        wire.weighted_waypoints =
            vec![proto::WeightedWaypoint { destination: Some(by_name("a", "b")), weight: 3 }];
        wire.visibility = 1;
    })
    .unwrap();
    assert_eq!(
        service.vips.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["n/10.0.0.1", "n/10.0.0.2", "n/10.0.0.1"]
    );
    let cidrs: Vec<String> = service.cidr_vips.iter().map(|range| range.cidr.to_string()).collect();
    assert_eq!(cidrs, ["10.9.0.0/16", "10.0.0.0/8"]);
    assert_eq!(service.ports.iter().collect::<Vec<_>>(), [(&80, &8080), (&443, &0)]);
    assert_eq!(service.subject_alt_names, ["spiffe://td/ns/a/sa/b".parse().unwrap()]);
    assert_eq!(service.waypoint.unwrap().destination.to_string(), "n/10.0.0.1");
    let balancer = service.load_balancer.unwrap();
    assert_eq!(balancer.routing_preferences, [LbScope::Network, LbScope::Region, LbScope::Cluster]);
    assert_eq!((balancer.mode, balancer.health_policy), (LbMode::Failover, HealthPolicy::AllowAll));
    assert_eq!(service.ip_families, Some(IpFamilies::Ipv6));
    assert!(service.canonical);
    assert_eq!(service.weighted_waypoints[0].1, 3);
    assert_eq!(service.visibility, Visibility::Namespace);
}

#[test]
fn invalid_fields_of_a_service_are_named() {
    type Change = fn(&mut proto::Service);
    fn vip(address: &[u8], length: u32) -> Vec<proto::NetworkAddress> {
        vec![proto::NetworkAddress {
            network: String::new(),
            address: address.to_vec(),
            length: Some(length),
        }]
    }
    let cases: [(Change, &str); 8] = [
        (|s| s.hostname.clear(), "hostname: missing"),
        (|s| s.namespace = "a/b".into(), "namespace: \"a/b\" is not <namespace>/<hostname>"),
        (
            |s| s.addresses = vip(&[1, 2, 3, 4], 33),
            "addresses.length: prefix length 33 is longer than the address (32 bits)",
        ),
        (
            |s| s.addresses = vip(&[1, 2, 3, 4], 256 + 8),
            "addresses.length: prefix length 264 is longer than the address (32 bits)",
        ),
        (
            |s| s.addresses = vip(&[0; 16], 129),
            "addresses.length: prefix length 129 is longer than the address (128 bits)",
        ),
        (|s| s.ports = vec![port(80, 70_000)], "ports: 70000 is not a port (0 to 65535)"),
        (
            |s| s.weighted_waypoints = vec![proto::WeightedWaypoint { destination: None, weight: 1 }],
            "weighted_waypoints.destination: missing",
        ),
        (
            |s| {
                s.load_balancing =
                    Some(proto::LoadBalancing { routing_preference: vec![42], mode: 1, health_policy: 0 });
            },
            "load_balancing.routing_preference: 42 is not supported",
        ),
    ];
    for (change, want) in cases {
        assert_eq!(service_with(change).unwrap_err().to_string(), want);
    }
}

#[test]
fn unknown_values_of_a_service_are_ignored() {
    let service = service_with(|wire| {
        wire.visibility = 9;
        wire.ip_families = 9;
        wire.load_balancing =
            Some(proto::LoadBalancing { routing_preference: vec![0], mode: 9, health_policy: 9 });
    })
    .unwrap();
    assert_eq!((service.visibility, service.ip_families), (Visibility::Public, None));
    let balancer = service.load_balancer.unwrap();
    assert_eq!((balancer.mode, balancer.health_policy), (LbMode::Standard, HealthPolicy::OnlyHealthy));
    assert!(balancer.routing_preferences.is_empty());
}

#[test]
fn an_address_is_one_of_the_two() {
    let (wrap, texts) = (|kind| proto::Address { r#type: kind }, &mut Interner::default());
    let workload = address(wrap(Some(proto::address::Type::Workload(plain_workload()))), texts).unwrap();
    assert!(matches!(workload, Resource::Workload(w) if w.uid.as_str() == "c//Pod/ns/p"));
    let service = address(wrap(Some(proto::address::Type::Service(plain_service()))), texts).unwrap();
    let want = Hostname::from("a.ns.svc.cluster.local");
    assert!(matches!(service, Resource::Service(s) if s.hostname == want));
    assert_eq!(address(wrap(None), texts), Err(WireError::Missing { field: "type" }));
}

#[test]
fn a_policy_is_read_whole() {
    let text = |kind| security::StringMatch { match_type: Some(kind) };
    let mut read = policy_with(|wire| {
        wire.principals = vec![
            text(MatchType::Exact("e".into())),
            text(MatchType::Prefix("p".into())),
            text(MatchType::Suffix("s".into())),
            text(MatchType::Presence(security::Presence {})),
        ];
        wire.source_ips = vec![
            security::Address { address: vec![10, 0, 0, 0], length: 8 },
            security::Address { address: MAPPED.to_vec(), length: 128 },
        ];
        wire.not_destination_ports = vec![80];
        wire.service_accounts =
            vec![security::ServiceAccountMatch { namespace: "n".into(), service_account: "a".into() }];
    })
    .unwrap();
    assert_eq!(read.key().as_str(), "ns/p");
    assert_eq!((read.scope, read.action, read.dry_run), (Scope::Global, Action::Allow, false));
    let Match { principals, source_ips, not_destination_ports, service_accounts, .. } =
        read.rules.remove(0).remove(0).remove(0);
    assert_eq!(
        principals,
        [
            StringMatch::Exact("e".into()),
            StringMatch::Prefix("p".into()),
            StringMatch::Suffix("s".into()),
            StringMatch::Presence
        ]
    );
    assert_eq!(source_ips, ["10.0.0.0/8".parse().unwrap(), "10.0.0.1/32".parse().unwrap()]);
    assert_eq!(not_destination_ports, [80]);
    assert_eq!(service_accounts[0].service_account.as_str(), "a");
}

#[test]
fn a_policy_with_an_unknown_value_is_rejected_whole() {
    type Change = fn(&mut security::Match);
    let cases: [(Change, &str); 5] = [
        (|m| m.namespaces = vec![security::StringMatch { match_type: None }], "match.namespaces: missing"),
        (
            |m| m.source_ips = vec![security::Address { address: vec![1], length: 8 }],
            "match.source_ips: 1 bytes are not an IP address (4 or 16 are)",
        ),
        (
            |m| m.not_source_ips = vec![security::Address { address: vec![1, 2, 3, 4], length: 33 }],
            "match.not_source_ips: prefix length 33 is longer than the address (32 bits)",
        ),
        (|m| m.destination_ports = vec![65_536], "match.destination_ports: 65536 is not a port (0 to 65535)"),
        (
            |m| m.not_principals = vec![security::StringMatch { match_type: None }],
            "match.not_principals: missing",
        ),
    ];
    for (change, want) in cases {
        assert_eq!(policy_with(change).unwrap_err().to_string(), want);
    }
    let scope = policy(security::Authorization { scope: 3, ..Default::default() }).unwrap_err();
    assert_eq!(scope.to_string(), "scope: 3 is not supported");
    let action = policy(security::Authorization { action: 2, ..Default::default() }).unwrap_err();
    assert_eq!(action.to_string(), "action: 2 is not supported");
}

#[test]
fn the_outline_of_a_rejected_policy_is_its_scope() {
    let wire = |scope, action| security::Authorization { scope, action, dry_run: true, ..Default::default() };
    let read = |scope, action| outline(&wire(scope, action)).map(|o| (o.scope, o.action, o.dry_run));
    assert_eq!(read(0, 0), Some((Scope::Global, Action::Allow, true)));
    assert_eq!(read(2, 1), Some((Scope::WorkloadSelector, Action::Deny, true)));
    assert_eq!(
        read(1, 7),
        Some((Scope::Namespace, Action::Deny, true)),
        "an action of the future lets nothing through"
    );
    assert_eq!(read(9, 0), None);
    let nowhere = policy(security::Authorization { scope: 1, ..Default::default() }).unwrap_err();
    assert_eq!(nowhere.to_string(), "namespace: missing");
}
