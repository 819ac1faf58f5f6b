//! Kinds of services and workloads that the reference tells apart: ranges, canonical and hidden services, addresses that
//! several workloads have, the host's network, families.

use isthmus_model::service::NetworkCidr;
use isthmus_model::{IpFamilies, NetworkMode};

use super::*;
use crate::Batch;
use crate::fixture::at;

fn range(mut service: Service, range: &str) -> Service {
    service.vips.clear();
    service.cidr_vips = vec![NetworkCidr { network: NETWORK.into(), cidr: range.parse().unwrap() }];
    service
}

/// Defect 2 of the reference: endpoints that arrive later, or change, left the range without any.
#[test]
fn the_longest_range_wins_in_any_order_of_arrival() {
    let wide = range(service("wide", ""), "10.200.0.0/16");
    let narrow = range(service("narrow", ""), "10.200.7.0/24");
    let exact = service("exact", "10.200.7.7");
    let services = [wide.clone(), narrow.clone(), exact.clone()];
    let endpoints = [
        serving(pod("w", "10.0.0.1"), &wide),
        serving(pod("n", "10.0.0.2"), &narrow),
        serving(pod("e", "10.0.0.3"), &exact),
    ];
    let check = |state: &Snapshot| {
        expect(state, "10.200.1.1:80", "hbone 10.0.0.1:15008 10.0.0.1:8080 sa (service)");
        expect(state, "10.200.7.1:80", "hbone 10.0.0.2:15008 10.0.0.2:8080 sa (service)");
        expect(state, "10.200.7.7:80", "hbone 10.0.0.3:15008 10.0.0.3:8080 sa (service)");
        expect(state, "10.201.0.1:80", "passthrough 10.201.0.1:80 (unknown destination)");
    };
    check(&snapshot(&endpoints, &services));
    // Endpoints first, services first, one by one, and again and again.
    let mut state = snapshot(&[], &[]);
    for endpoint in &endpoints {
        state.apply(Batch { upsert_workloads: vec![endpoint.clone()], ..Batch::default() });
    }
    state.apply(Batch { upsert_services: services.to_vec(), ..Batch::default() });
    check(&state);
    let mut state = snapshot(&[], &services);
    expect(&state, "10.200.7.1:80", "deny: no healthy upstream: 10.200.7.1:80");
    for round in 1..20 {
        for endpoint in &endpoints {
            let changed = Workload { canonical_revision: format!("v{round}").into(), ..endpoint.clone() };
            state.apply(Batch { upsert_workloads: vec![changed], ..Batch::default() });
        }
        let mut service = narrow.clone();
        service.canonical = round % 2 == 0;
        state.apply(Batch { upsert_services: vec![service], ..Batch::default() });
        check(&state);
    }
    state
        .apply(Batch { remove_addresses: vec!["ns/narrow.ns.svc.cluster.local".into()], ..Batch::default() });
    expect(&state, "10.200.7.1:80", "hbone 10.0.0.1:15008 10.0.0.1:8080 sa (service)");
}

#[test]
fn an_exact_address_beats_a_range_and_a_range_counts_on_its_own_ports() {
    let mut wide = range(service("wide", ""), "10.0.0.0/8");
    wide.ports = [(5432, 5432)].into();
    let mut narrow = range(service("narrow", ""), "10.9.0.0/16");
    narrow.ports = [(80, 8080)].into();
    let database = in_plain_tcp(serving(pod("db", "192.0.2.1"), &wide));
    let web = serving(pod("n", "192.0.2.2"), &narrow);
    let services = [wide.clone(), narrow.clone()];
    let state = snapshot(&[database.clone(), web.clone(), pod("a", "10.0.0.1")], &services);
    // The pod is itself, on the range's port too.
    expect(&state, "10.0.0.1:5000", "hbone 10.0.0.1:15008 10.0.0.1:5000 sa (workload)");
    expect(&state, "10.0.0.1:5432", "hbone 10.0.0.1:15008 10.0.0.1:5432 sa (workload)");
    expect(&state, "10.1.1.1:5432", "tcp 192.0.2.1:5432 192.0.2.1:5432 (service)");
    expect(&state, "10.1.1.1:5000", "passthrough 10.1.1.1:5000 (unknown destination)");
    // Of two ranges the one with the port, however long the other is.
    expect(&state, "10.9.1.1:80", "hbone 192.0.2.2:15008 192.0.2.2:8080 sa (service)");
    expect(&state, "10.9.1.1:5432", "tcp 192.0.2.1:5432 192.0.2.1:5432 (service)");
    // The same where the service asks for no load balancing, and where it has a waypoint.
    let narrow = balanced(narrow, LbMode::Passthrough, &[]);
    let wide = via(wide, by_name("ns/missing.ns.svc.cluster.local"));
    let state = snapshot(&[database, web, pod("a", "10.0.0.1")], &[wide, narrow]);
    expect(&state, "10.0.0.1:5432", "hbone 10.0.0.1:15008 10.0.0.1:5432 sa (workload)");
    expect(&state, "10.9.1.1:80", "passthrough 10.9.1.1:80 (passthrough service)");
    expect(&state, "10.1.1.1:5000", "passthrough 10.1.1.1:5000 (unknown destination)");
    expect(&state, "10.1.1.1:5432", "deny: unknown waypoint: ns/missing.ns.svc.cluster.local");
}

#[test]
fn services_of_one_address_or_name_divide_its_ports() {
    let with = |name: &str, namespace: &str, vip: &str, port: u16| {
        let mut service = service(name, vip);
        service.namespace = namespace.into();
        service.hostname = format!("{}.example.com", name.split('-').next().unwrap()).into();
        service.ports = [(port, port)].into();
        service
    };
    // One address, two names; one name in two namespaces, with addresses of their own.
    let services = [
        with("one", "ns", "198.51.100.1", 7001),
        with("two", "ns", "198.51.100.1", 7002),
        with("db-a", "ns", "198.51.100.2", 7003),
        with("db-b", "other", "198.51.100.3", 7004),
    ];
    let endpoints: Vec<Workload> = services
        .iter()
        .zip(1..)
        .map(|(service, n)| serving(pod(&format!("p{n}"), &format!("10.0.0.{n}")), service))
        .collect();
    for reversed in [false, true] {
        let mut services = services.to_vec();
        if reversed {
            services.reverse();
        }
        let state = snapshot(&endpoints, &services);
        for (to, endpoint) in [
            ("198.51.100.1:7001", "10.0.0.1"),
            ("198.51.100.1:7002", "10.0.0.2"),
            ("198.51.100.2:7003", "10.0.0.3"),
            ("198.51.100.3:7004", "10.0.0.4"),
            // DNS gave the address of the one; the port is the other's.
            ("198.51.100.2:7004", "10.0.0.4"),
            ("198.51.100.3:7003", "10.0.0.3"),
        ] {
            let port = to.rsplit_once(':').unwrap().1;
            expect(&state, to, &format!("hbone {endpoint}:15008 {endpoint}:{port} sa (service)"));
        }
        let denied = "deny: no healthy upstream: 198.51.100.1:7009";
        expect(&state, "198.51.100.1:7009", denied);
    }
}

#[test]
fn a_range_of_ipv6_has_endpoints_of_its_family() {
    let web = range(service("web", ""), "fd96::/32");
    let mut both = serving(pod("a", "10.0.0.1"), &web);
    both.addresses.push("fd00::1".parse().unwrap());
    let state = snapshot(&[both], &[web]);
    expect(&state, "[fd96:0:1::5]:80", "hbone [fd00::1]:15008 [fd00::1]:8080 sa (service)");
    expect(&state, "[fd97::5]:80", "passthrough [fd97::5]:80 (unknown destination)");
}

#[test]
fn the_clients_own_service_wins_an_address_then_the_canonical_one() {
    let in_namespace = |namespace: &str, canonical| {
        let mut web = service("web", "10.96.0.1");
        web.namespace = namespace.into();
        web.hostname = "shared.example.com".into();
        web.canonical = canonical;
        web
    };
    let (first, canonical, own) =
        (in_namespace("first", false), in_namespace("canonical", true), in_namespace("ns", false));
    let endpoints = [
        serving(pod("f", "10.0.0.1"), &first),
        serving(pod("c", "10.0.0.2"), &canonical),
        serving(pod("o", "10.0.0.3"), &own),
    ];
    let address = |services: &[Service], want: &str| {
        let state = snapshot(&endpoints, services);
        let resolved = outcome(&state, &client(), "10.96.0.1:80");
        assert!(matches!(route(&resolved), Route::Hbone(_)), "{resolved:?}");
        assert_eq!(route(&resolved).addr(), format!("{want}:15008").parse().unwrap());
    };
    address(&[first.clone(), canonical.clone(), own.clone()], "10.0.0.3");
    address(&[first.clone(), canonical], "10.0.0.2");
    address(&[first], "10.0.0.1");
    // A hidden service is skipped for other namespaces, and wins for its own.
    let mut hidden = in_namespace("other", true);
    hidden.visibility = Visibility::Namespace;
    let state = snapshot(&endpoints, &[hidden.clone()]);
    expect(&state, "10.96.0.1:80", "passthrough 10.96.0.1:80 (unknown destination)");
    let mut insider = client();
    insider.namespace = "other".into();
    assert_eq!(line(&outcome(&state, &insider, "10.96.0.1:80")), "deny: no healthy upstream: 10.96.0.1:80");
    let mut hidden_range = range(hidden, "10.96.0.0/24");
    hidden_range.vips.clear();
    let state = snapshot(&[], &[hidden_range]);
    expect(&state, "10.96.0.9:80", "passthrough 10.96.0.9:80 (unknown destination)");
    assert_eq!(line(&outcome(&state, &insider, "10.96.0.9:80")), "deny: no healthy upstream: 10.96.0.9:80");
}

#[test]
fn a_pod_in_the_mesh_wins_an_address() {
    let at_one = |uid: &str, protocol| {
        let mut workload = pod(uid, "10.0.0.1");
        workload.uid = uid.into();
        workload.service_account = uid.rsplit('/').next().unwrap().into();
        workload.protocol = protocol;
        workload
    };
    let entry_plain = at_one("c/networking.istio.io/WorkloadEntry/ns/entry-plain", Protocol::Tcp);
    let entry = at_one("c/networking.istio.io/WorkloadEntry/ns/entry", Protocol::Hbone);
    let pod_plain = at_one("c//Pod/ns/pod-plain", Protocol::Tcp);
    let pod_mesh = at_one("c//Pod/ns/pod-mesh", Protocol::Hbone);
    let ranked = [entry_plain, entry, pod_plain, pod_mesh];
    for count in 1..=ranked.len() {
        // In either order of arrival the best of those there are is meant.
        for reversed in [false, true] {
            let mut there = ranked[..count].to_vec();
            if reversed {
                there.reverse();
            }
            let state = snapshot(&there, &[]);
            let found = state.workload_by_addr(&at(NETWORK, "10.0.0.1")).unwrap();
            assert_eq!(found.uid, ranked[count - 1].uid);
        }
    }
    let state = snapshot(&ranked, &[]);
    expect(&state, "10.0.0.1:80", "hbone 10.0.0.1:15008 10.0.0.1:80 pod-mesh (workload)");
    // Once the best has gone the next is there.
    let mut state = state;
    state.apply(Batch { remove_addresses: vec!["c//Pod/ns/pod-mesh".into()], ..Batch::default() });
    expect(&state, "10.0.0.1:80", "tcp 10.0.0.1:80 10.0.0.1:80 (workload)");
    // The same address on another network is another address.
    let mut elsewhere = pod("elsewhere", "10.0.0.1");
    elsewhere.network = REMOTE.into();
    let state = snapshot(&[elsewhere], &[]);
    expect(&state, "10.0.0.1:80", "passthrough 10.0.0.1:80 (unknown destination)");
}

#[test]
fn a_host_network_workload_is_an_endpoint_but_not_found_by_address() {
    let web = service("web", "10.96.0.1");
    let mut host = in_plain_tcp(serving(pod("host", "192.168.1.1"), &web));
    host.network_mode = NetworkMode::HostNetwork;
    let state = snapshot(&[host], &[web]);
    expect(&state, "192.168.1.1:8080", "passthrough 192.168.1.1:8080 (unknown destination)");
    expect(&state, "10.96.0.1:80", "tcp 192.168.1.1:8080 192.168.1.1:8080 (service)");
}

#[test]
fn families_of_the_service_restrict_the_address() {
    let mut web = service("web", "10.96.0.1");
    web.vips.push(at(NETWORK, "fd96::1"));
    let mut both = serving(pod("a", "10.0.0.1"), &web);
    both.addresses.push("fd00::1".parse().unwrap());
    let (v4, v6) = (
        "hbone 10.0.0.1:15008 10.0.0.1:8080 sa (service)",
        "hbone [fd00::1]:15008 [fd00::1]:8080 sa (service)",
    );
    for (families, to_v4, to_v6) in [
        (None, v4, v6),
        (Some(IpFamilies::Dual), v4, v6),
        (Some(IpFamilies::Ipv4), v4, v4),
        (Some(IpFamilies::Ipv6), v6, v6),
    ] {
        web.ip_families = families;
        let state = snapshot(std::slice::from_ref(&both), std::slice::from_ref(&web));
        expect(&state, "10.96.0.1:80", to_v4);
        expect(&state, "[fd96::1]:80", to_v6);
    }
}

#[test]
fn a_broken_waypoint_is_never_bypassed() {
    let waypoint = waypoint_service();
    let healthy = serving(pod("wp", "10.0.0.7"), &waypoint);
    let mut without_port = waypoint.clone();
    without_port.ports = [(80, 8080)].into();
    let passthrough = balanced(waypoint.clone(), LbMode::Passthrough, &[]);
    let mut far = healthy.clone();
    far.network = REMOTE.into();
    far.addresses.clear();
    let by_service = by_name("ns/waypoint.ns.svc.cluster.local");
    let unknown = "deny: unknown waypoint: ns/waypoint.ns.svc.cluster.local";
    let cases = [
        (vec![], vec![], by_service.clone(), unknown),
        (vec![], vec![waypoint.clone()], by_service.clone(), unknown),
        (vec![unhealthy(healthy.clone())], vec![waypoint.clone()], by_service.clone(), unknown),
        (vec![healthy.clone()], vec![without_port], by_service.clone(), unknown),
        (vec![healthy], vec![passthrough], by_service.clone(), unknown),
        (vec![far], vec![waypoint], by_service, unknown),
        (vec![], vec![], by_address(NETWORK, "10.0.0.7"), "deny: unknown waypoint: east/10.0.0.7"),
    ];
    for (waypoints, mut services, reference, want) in cases {
        let web = via(service("web", "10.96.0.1"), reference.clone());
        let mut behind = serving(pod("a", "10.0.0.1"), &web);
        behind.waypoint = Some(reference);
        // Neither by the service nor by the pod's own address, nor for a pod that speaks no HBONE.
        for behind in [behind.clone(), in_plain_tcp(behind)] {
            services.push(web.clone());
            let state = snapshot(&[waypoints.clone(), vec![behind]].concat(), &services);
            expect(&state, "10.96.0.1:80", want);
            expect(&state, "10.0.0.1:80", want);
        }
    }
}
