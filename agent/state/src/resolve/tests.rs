use super::*;
use crate::fixture::{
    NETWORK, REMOTE, balanced, by_address, by_name, network_gateway, pod, rng, service, serving, snapshot,
    split_horizon, unhealthy,
};
use isthmus_model::service::LbMode;
use isthmus_model::workload::{ApplicationTunnel, TunnelKind};
use isthmus_model::{SpiffeId, Visibility};

const WORKLOAD_ID: &str = "spiffe://cluster.local/ns/ns/sa/sa";
const GATEWAY_ID: &str = "spiffe://cluster.local/ns/ns/sa/gateway-sa";
const FAR_ID: &str = "spiffe://cluster.local/ns/ns/sa/far";

fn client() -> Workload {
    pod("client", "10.0.0.9")
}

fn outcome(snapshot: &Snapshot, source: &Workload, original: &str) -> Resolved {
    resolve(snapshot, source, original.parse().unwrap(), &NETWORK.into(), &mut rng())
}

fn with_identity(mut service: Service, identity: &str) -> Service {
    service.subject_alt_names = vec![identity.parse().unwrap()];
    service
}

fn via(mut service: Service, waypoint: GatewayAddress) -> Service {
    service.waypoint = Some(waypoint);
    service
}

/// A route on one line: kind, TCP target, authority, identities, and the same of the inner tunnel; with the reason.
fn line(resolved: &Resolved) -> String {
    let ids = |ids: &[SpiffeId]| {
        let names: Vec<_> = ids.iter().map(|id| id.service_account.to_string()).collect();
        names.join("+")
    };
    let upstream = |kind: &str, up: &Upstream| {
        let inner =
            up.inner.as_ref().map(|inner| format!(" [{} {}]", inner.authority, ids(&inner.identities)));
        format!("{kind} {} {} {}{}", up.tcp_to, up.authority, ids(&up.identities), inner.unwrap_or_default())
    };
    let route = match &resolved.route {
        Route::Passthrough { to } => format!("passthrough {to}"),
        Route::Tcp(up) => upstream("tcp", up),
        Route::Hbone(up) => upstream("hbone", up),
        Route::DoubleHbone(up) => upstream("double", up),
        Route::Deny(reason) => return format!("deny: {reason}"),
    };
    format!("{} ({})", route.trim_end(), resolved.reason)
}

#[track_caller]
fn expect(snapshot: &Snapshot, original: &str, want: &str) -> Resolved {
    let resolved = outcome(snapshot, &client(), original);
    assert_eq!(line(&resolved), want, "{original}");
    resolved
}

fn in_plain_tcp(mut workload: Workload) -> Workload {
    workload.protocol = Protocol::Tcp;
    workload
}

#[test]
fn the_agents_own_ports_are_refused_on_loopback_only() {
    let state = snapshot(&[], &[]);
    for port in [15001, 15006, 15008, 15053] {
        for host in ["127.0.0.1", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]"] {
            expect(&state, &format!("{host}:{port}"), "deny: attempted recursive call to ourselves");
        }
    }
    expect(&state, "127.0.0.1:15020", "passthrough 127.0.0.1:15020 (unknown destination)");
    expect(&state, "10.0.0.1:15008", "passthrough 10.0.0.1:15008 (unknown destination)");
}

#[test]
fn what_nothing_is_known_of_passes_through() {
    let mut elsewhere = pod("a", "10.0.0.1");
    elsewhere.network = REMOTE.into();
    let state = snapshot(&[elsewhere], &[]);
    let resolved = expect(&state, "10.0.0.1:80", "passthrough 10.0.0.1:80 (unknown destination)");
    assert_eq!(resolved.destination, Destination::default());
    expect(&state, "[::ffff:1.2.3.4]:80", "passthrough 1.2.3.4:80 (unknown destination)");
}

#[test]
fn a_workload_is_reached_as_it_speaks() {
    let state = snapshot(&[pod("a", "10.0.0.1"), in_plain_tcp(pod("b", "10.0.0.2"))], &[]);
    let resolved = expect(&state, "10.0.0.1:80", "hbone 10.0.0.1:15008 10.0.0.1:80 sa (workload)");
    assert_eq!(resolved.destination.workload.unwrap().name.as_str(), "a");
    expect(&state, "10.0.0.2:80", "tcp 10.0.0.2:80 10.0.0.2:80 (workload)");
}

#[test]
fn a_service_is_reached_at_an_endpoint() {
    let web = with_identity(service("web", "10.96.0.1"), FAR_ID);
    let state = snapshot(&[serving(pod("a", "10.0.0.1"), &web)], std::slice::from_ref(&web));
    let resolved = expect(&state, "10.96.0.1:80", "hbone 10.0.0.1:15008 10.0.0.1:8080 far+sa (service)");
    assert_eq!(resolved.destination.service.unwrap().key(), web.key());
    let Route::Hbone(upstream) = resolved.route else { panic!("{:?}", resolved.route) };
    assert_eq!(upstream.service.as_deref(), Some(&web));
    let plain = snapshot(&[in_plain_tcp(serving(pod("a", "10.0.0.1"), &web))], std::slice::from_ref(&web));
    expect(&plain, "10.96.0.1:80", "tcp 10.0.0.1:8080 10.0.0.1:8080 (service)");
    // The workload's own identity is not expected twice.
    let same = with_identity(service("web", "10.96.0.1"), WORKLOAD_ID);
    let state = snapshot(&[serving(pod("a", "10.0.0.1"), &same)], &[same]);
    expect(&state, "10.96.0.1:80", "hbone 10.0.0.1:15008 10.0.0.1:8080 sa (service)");
}

#[test]
fn a_service_without_a_usable_endpoint_is_not_passed_through() {
    let web = service("web", "10.96.0.1");
    let healthy = serving(pod("a", "10.0.0.1"), &web);
    for (workloads, original) in [
        (vec![], "10.96.0.1:80"),
        (vec![unhealthy(healthy.clone())], "10.96.0.1:80"),
        (vec![healthy], "10.96.0.1:81"),
    ] {
        let state = snapshot(&workloads, std::slice::from_ref(&web));
        let resolved = expect(&state, original, &format!("deny: no healthy upstream: {original}"));
        assert_eq!(resolved.destination.service.unwrap().key(), web.key());
    }
}

#[test]
fn a_service_that_is_never_balanced_passes_through() {
    let web = balanced(service("web", "10.96.0.1"), LbMode::Passthrough, &[]);
    let state = snapshot(&[serving(pod("a", "10.0.0.1"), &web)], &[web]);
    expect(&state, "10.96.0.1:80", "passthrough 10.96.0.1:80 (passthrough service)");
}

#[test]
fn a_hidden_service_is_unknown_to_other_namespaces() {
    let mut web = service("web", "10.96.0.1");
    web.visibility = Visibility::Namespace;
    let state = snapshot(&[serving(pod("a", "10.0.0.1"), &web)], &[web]);
    let mut stranger = client();
    stranger.namespace = "other".into();
    let resolved = outcome(&state, &stranger, "10.96.0.1:80");
    assert_eq!(line(&resolved), "passthrough 10.96.0.1:80 (unknown destination)");
}

#[test]
fn an_endpoint_without_an_address_is_refused_with_its_name() {
    let mut web = service("web", "10.96.0.1");
    web.ip_families = Some(isthmus_model::IpFamilies::Ipv6);
    let state = snapshot(&[serving(pod("a", "10.0.0.1"), &web)], &[web]);
    expect(&state, "10.96.0.1:80", "deny: no address fits for workload: c//Pod/ns/a");
    let web = service("web", "10.96.0.1");
    let mut named = serving(pod("a", "10.0.0.1"), &web);
    named.addresses.clear();
    named.hostname = "example.com".into();
    expect(
        &snapshot(&[named], &[web]),
        "10.96.0.1:80",
        "deny: no address is known of hostname example.com of workload c//Pod/ns/a",
    );
}

#[test]
fn a_service_with_a_waypoint_goes_there_and_never_past_it() {
    let waypoint = with_identity(waypoint_service(), FAR_ID);
    let web = via(service("web", "10.96.0.1"), by_name("ns/waypoint.ns.svc.cluster.local"));
    let workloads = [serving(pod("a", "10.0.0.1"), &web), serving(pod("wp", "10.0.0.7"), &waypoint)];
    let state = snapshot(&workloads, &[web.clone(), waypoint.clone()]);
    let resolved =
        expect(&state, "10.96.0.1:80", "hbone 10.0.0.7:15008 10.96.0.1:80 far+sa (service waypoint)");
    assert_eq!(resolved.destination.workload.unwrap().name.as_str(), "wp");
    assert_eq!(resolved.destination.service.unwrap().key(), web.key());
    // By address of the waypoint's service, and of its pod.
    for (reference, ids) in [("10.96.0.7", "far+sa"), ("10.0.0.7", "sa")] {
        let web = via(service("web", "10.96.0.1"), by_address(NETWORK, reference));
        let state = snapshot(&workloads, &[web, waypoint.clone()]);
        expect(
            &state,
            "10.96.0.1:80",
            &format!("hbone 10.0.0.7:15008 10.96.0.1:80 {ids} (service waypoint)"),
        );
    }
    // Gone, or without endpoints.
    let gone = snapshot(&workloads, std::slice::from_ref(&web));
    expect(&gone, "10.96.0.1:80", "deny: unknown waypoint: ns/waypoint.ns.svc.cluster.local");
    let empty = snapshot(&workloads[..1], &[web, waypoint]);
    expect(&empty, "10.96.0.1:80", "deny: unknown waypoint: ns/waypoint.ns.svc.cluster.local");
}

fn waypoint_service() -> Service {
    let mut waypoint = service("waypoint", "10.96.0.7");
    waypoint.ports = [(15008, 15008)].into();
    waypoint
}

#[test]
fn a_waypoint_may_be_a_workload_by_name_or_listen_behind_a_tunnel_of_its_own() {
    let web = via(service("web", "10.96.0.1"), by_name("ns/wp.example.com"));
    let mut named = pod("wp", "10.0.0.7");
    named.hostname = "wp.example.com".into();
    let state = snapshot(&[named], std::slice::from_ref(&web));
    expect(&state, "10.96.0.1:80", "hbone 10.0.0.7:15008 10.96.0.1:80 sa (service waypoint)");
    // A sandwiched waypoint's service need not declare the HBONE port.
    let web = via(service("web", "10.96.0.1"), by_name("ns/waypoint.ns.svc.cluster.local"));
    let waypoint = service("waypoint", "10.96.0.7");
    let mut sandwiched = serving(pod("wp", "10.0.0.7"), &waypoint);
    let services = [web, waypoint];
    let without = snapshot(std::slice::from_ref(&sandwiched), &services);
    expect(&without, "10.96.0.1:80", "deny: unknown waypoint: ns/waypoint.ns.svc.cluster.local");
    sandwiched.application_tunnel =
        Some(ApplicationTunnel { protocol: TunnelKind::Proxy, port: Some(15088) });
    let state = snapshot(&[sandwiched], &services);
    expect(&state, "10.96.0.1:80", "hbone 10.0.0.7:15008 10.96.0.1:80 sa (service waypoint)");
}

#[test]
fn weighted_waypoints_share_the_connections_and_zero_weights_leave_the_one() {
    let mut web = via(service("web", "10.96.0.1"), by_address(NETWORK, "10.0.0.7"));
    web.weighted_waypoints = vec![(by_address(NETWORK, "10.0.0.5"), 3), (by_address(NETWORK, "10.0.0.6"), 1)];
    let pods = [pod("five", "10.0.0.5"), pod("six", "10.0.0.6"), pod("seven", "10.0.0.7")];
    let state = snapshot(&pods, std::slice::from_ref(&web));
    let (mut rng, mut five) = (rng(), 0);
    for _ in 0..4000 {
        let resolved = resolve(&state, &client(), "10.96.0.1:80".parse().unwrap(), &NETWORK.into(), &mut rng);
        let name = resolved.destination.workload.unwrap().name.to_string();
        assert_ne!(name, "seven");
        five += i32::from(name == "five");
    }
    assert!((2850..3150).contains(&five), "{five}");
    web.weighted_waypoints.iter_mut().for_each(|(_, weight)| *weight = 0);
    let state = snapshot(&pods, &[web]);
    expect(&state, "10.96.0.1:80", "hbone 10.0.0.7:15008 10.96.0.1:80 sa (service waypoint)");
}

#[test]
fn a_workload_with_a_waypoint_goes_there_when_it_is_addressed_itself() {
    let waypoint = waypoint_service();
    let web = service("web", "10.96.0.1");
    let mut behind = serving(pod("a", "10.0.0.1"), &web);
    behind.waypoint = Some(by_name("ns/waypoint.ns.svc.cluster.local"));
    let wp = serving(pod("wp", "10.0.0.7"), &waypoint);
    let state = snapshot(&[behind.clone(), wp.clone()], &[waypoint.clone(), web.clone()]);
    expect(&state, "10.0.0.1:80", "hbone 10.0.0.7:15008 10.0.0.1:80 sa (workload waypoint)");
    // Through its service, which has no waypoint, it is reached directly.
    expect(&state, "10.96.0.1:80", "hbone 10.0.0.1:15008 10.0.0.1:8080 sa (service)");
    // The waypoint itself does not come back to itself.
    let resolved = outcome(&state, &wp, "10.0.0.1:80");
    assert_eq!(line(&resolved), "hbone 10.0.0.1:15008 10.0.0.1:80 sa (workload)");
    // Even a destination out of the mesh is reached through its waypoint.
    let state = snapshot(&[in_plain_tcp(behind.clone()), wp], &[waypoint]);
    expect(&state, "10.0.0.1:80", "hbone 10.0.0.7:15008 10.0.0.1:80 sa (workload waypoint)");
    let gone = snapshot(&[behind], &[]);
    expect(&gone, "10.0.0.1:80", "deny: unknown waypoint: ns/waypoint.ns.svc.cluster.local");
}

#[test]
fn a_waypoint_that_is_a_workload_does_not_come_back_to_itself() {
    let mut behind = pod("a", "10.0.0.1");
    behind.waypoint = Some(by_address(NETWORK, "10.0.0.7"));
    let wp = pod("wp", "10.0.0.7");
    let state = snapshot(&[behind, wp.clone()], &[]);
    assert_eq!(line(&outcome(&state, &wp, "10.0.0.1:80")), "hbone 10.0.0.1:15008 10.0.0.1:80 sa (workload)");
    expect(&state, "10.0.0.1:80", "hbone 10.0.0.7:15008 10.0.0.1:80 sa (workload waypoint)");
}

#[test]
fn an_address_that_is_both_a_workloads_and_a_services_is_classified_as_a_workloads() {
    // The service wins the connection, but its waypoint does not apply, while the endpoint's does.
    let web = via(service("web", "10.0.0.1"), by_name("ns/nowhere"));
    let state = snapshot(&[serving(pod("a", "10.0.0.1"), &web)], &[web]);
    expect(&state, "10.0.0.1:80", "hbone 10.0.0.1:15008 10.0.0.1:8080 sa (service)");
}

#[test]
fn an_endpoint_on_another_network_is_reached_through_its_gateway() {
    let web = with_identity(service("web", "10.96.0.1"), FAR_ID);
    let workloads = [split_horizon(&web, "192.168.0.2"), network_gateway("192.168.0.2")];
    let state = snapshot(&workloads, std::slice::from_ref(&web));
    let resolved = expect(
        &state,
        "10.96.0.1:80",
        "double 192.168.0.2:15008 web.ns.svc.cluster.local:80 gateway-sa \
         [web.ns.svc.cluster.local:80 far] (other network)",
    );
    let Route::DoubleHbone(upstream) = &resolved.route else { panic!("{:?}", resolved.route) };
    assert_eq!(upstream.identities, [GATEWAY_ID.parse().unwrap()]);
    assert_eq!(upstream.workload.service_account.as_str(), "gateway-sa");
    assert_eq!(resolved.destination.workload.unwrap(), upstream.workload);
}

#[test]
fn a_gateway_may_be_a_service() {
    let web = with_identity(service("web", "10.96.0.1"), FAR_ID);
    let mut gateway = with_identity(service("gateway", "192.168.0.100"), "spiffe://td/ns/x/sa/gw-service");
    gateway.vips[0].network = REMOTE.into();
    gateway.ports = [(15008, 0)].into();
    let mut split = split_horizon(&web, "192.168.0.100");
    let mut pod = network_gateway("192.168.0.2");
    pod.services.insert(gateway.key(), [(15008, 15009)].into());
    let want = "double 192.168.0.2:15009 web.ns.svc.cluster.local:80 gw-service+gateway-sa \
                [web.ns.svc.cluster.local:80 far] (other network)";
    let services = [web, gateway];
    expect(&snapshot(&[split.clone(), pod.clone()], &services), "10.96.0.1:80", want);
    split.network_gateway = Some(by_name("ns/gateway.ns.svc.cluster.local"));
    expect(&snapshot(&[split.clone(), pod.clone()], &services), "10.96.0.1:80", want);
    // Named target ports must be known.
    pod.services.insert(services[1].key(), [].into());
    let unknown = "deny: unknown network gateway: ns/gateway.ns.svc.cluster.local";
    expect(&snapshot(&[split, pod], &services), "10.96.0.1:80", unknown);
}

#[test]
fn what_is_missing_to_cross_networks_is_said() {
    let anonymous = service("web", "10.96.0.1");
    let web = with_identity(anonymous.clone(), FAR_ID);
    let (split, gateway) = (split_horizon(&web, "192.168.0.2"), network_gateway("192.168.0.2"));
    let mut no_gateway = split.clone();
    no_gateway.network_gateway = None;
    no_gateway.hostname = "far.example.com".into();
    let mut no_address = gateway.clone();
    no_address.uid = "NetworkGateway/west/gw/15008".into();
    no_address.addresses.clear();
    no_address.hostname = "gw.example.com".into();
    let mut by_hostname = split.clone();
    by_hostname.network_gateway = Some(by_name("ns/gw.example.com"));
    let cases = [
        (&web, vec![split.clone()], "deny: unknown network gateway: west/192.168.0.2"),
        (
            &web,
            vec![no_gateway, gateway.clone()],
            "deny: no valid routing destination for workload: west/SplitHorizonWorkload/web.ns.svc.cluster.local",
        ),
        (
            &anonymous,
            vec![split, gateway],
            "deny: no identities are known for service ns/web.ns.svc.cluster.local, so its endpoints on another \
             network cannot be verified",
        ),
        (
            &web,
            vec![by_hostname, no_address],
            "deny: no address is known of hostname gw.example.com of workload NetworkGateway/west/gw/15008",
        ),
    ];
    for (service, workloads, want) in cases {
        let resolved = expect(&snapshot(&workloads, std::slice::from_ref(service)), "10.96.0.1:80", want);
        assert_eq!(resolved.reason, Reason::Denied);
    }
}

#[test]
fn only_services_cross_networks() {
    // The proxy's own network is not the source's: the address is known there, but is no service's.
    let mut far = pod("far", "10.0.0.5");
    far.network = REMOTE.into();
    far.waypoint = Some(by_address(NETWORK, "10.0.0.7"));
    let mut near = pod("near", "10.0.0.6");
    near.waypoint = Some(by_address(REMOTE, "10.0.0.5"));
    let state = snapshot(&[far, near], &[]);
    expect(&state, "10.0.0.6:80", "deny: no service for target address: 10.0.0.6:80");
}

#[test]
fn a_remote_waypoint_is_reached_through_its_gateway_for_the_service_itself() {
    let mut waypoint = with_identity(waypoint_service(), "spiffe://td/ns/x/sa/wp-service");
    let web =
        with_identity(via(service("web", "10.96.0.1"), by_name("ns/waypoint.ns.svc.cluster.local")), FAR_ID);
    let workloads = [
        serving(pod("a", "10.0.0.1"), &web),
        split_horizon(&waypoint, "192.168.0.2"),
        network_gateway("192.168.0.2"),
    ];
    let state = snapshot(&workloads, &[web.clone(), waypoint.clone()]);
    expect(
        &state,
        "10.96.0.1:80",
        "double 192.168.0.2:15008 web.ns.svc.cluster.local:80 gateway-sa \
         [web.ns.svc.cluster.local:80 wp-service] (service waypoint)",
    );
    waypoint.subject_alt_names.clear();
    expect(
        &snapshot(&workloads, &[web, waypoint]),
        "10.96.0.1:80",
        "deny: no identities are known for service ns/waypoint.ns.svc.cluster.local, so its endpoints on another \
         network cannot be verified",
    );
}

#[test]
fn the_outcome_depends_on_the_generator_alone() {
    let web = service("web", "10.96.0.1");
    let pods: Vec<_> =
        (1..200).map(|n| serving(pod(&format!("p{n}"), &format!("10.0.2.{n}")), &web)).collect();
    let (one, other) = (snapshot(&pods, std::slice::from_ref(&web)), snapshot(&pods, &[web]));
    let (mut a, mut b) = (rng(), rng());
    for _ in 0..100 {
        let resolve =
            |state, rng| resolve(state, &client(), "10.96.0.1:80".parse().unwrap(), &NETWORK.into(), rng);
        assert_eq!(resolve(&one, &mut a), resolve(&other, &mut b));
    }
}

mod hints;
mod kinds;
