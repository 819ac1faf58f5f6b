use super::*;
use crate::fixture::{
    NETWORK, REMOTE, balanced, by_address, by_name, network_gateway, pod, rng, service, serving, snapshot,
    split_horizon, unhealthy,
};
use isthmus_model::Visibility;
use isthmus_model::service::LbMode;
use isthmus_model::workload::{ApplicationTunnel, TunnelKind};

use crate::route::TunnelTarget;

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

/// A decision on one line: kind, TCP target, authority, identities, and the same of the inner tunnel; with the reason.
fn line(resolved: &Resolved) -> String {
    let ids = |ids: &AcceptedIdentities| {
        let names: Vec<_> = ids.as_slice().iter().map(|id| id.service_account.to_string()).collect();
        names.join("+")
    };
    let tunnel = |to: &TunnelTarget| format!("{} {} {}", to.addr, to.authority, ids(&to.identities));
    let route = match &resolved.decision {
        Decision::Connect(Route::Passthrough { to }) => format!("passthrough {to}"),
        Decision::Connect(Route::Tcp(to)) => format!("tcp {0} {0}", to.addr),
        Decision::Connect(Route::Hbone(to)) => format!("hbone {}", tunnel(to)),
        Decision::Connect(Route::DoubleHbone(to)) => {
            let inner = format!("{} {}", to.inner.authority, ids(&to.inner.identities));
            format!("double {} [{inner}]", tunnel(&to.outer))
        }
        Decision::NeedsAddress(pending) => {
            return format!("look up {} of {}", pending.hostname(), pending.workload().uid);
        }
        Decision::Deny(reason) => return format!("deny: {reason}"),
    };
    format!("{route} ({})", resolved.reason)
}

#[track_caller]
fn route(resolved: &Resolved) -> &Route {
    let Decision::Connect(route) = &resolved.decision else { panic!("{resolved:?}") };
    route
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
fn unknown_destinations_pass_through() {
    let mut elsewhere = pod("a", "10.0.0.1");
    elsewhere.network = REMOTE.into();
    let state = snapshot(&[elsewhere], &[]);
    let resolved = expect(&state, "10.0.0.1:80", "passthrough 10.0.0.1:80 (unknown destination)");
    assert_eq!(resolved.destination, Destination::default());
    expect(&state, "[::ffff:1.2.3.4]:80", "passthrough 1.2.3.4:80 (unknown destination)");
}

#[test]
fn a_workload_is_reached_by_its_own_protocol() {
    let state = snapshot(&[pod("a", "10.0.0.1"), in_plain_tcp(pod("b", "10.0.0.2"))], &[]);
    let resolved = expect(&state, "10.0.0.1:80", "hbone 10.0.0.1:15008 10.0.0.1:80 sa (workload)");
    assert_eq!(resolved.destination.workload.unwrap().name.as_str(), "a");
    expect(&state, "10.0.0.2:80", "tcp 10.0.0.2:80 10.0.0.2:80 (workload)");
}

#[test]
fn a_service_resolves_to_an_endpoint() {
    let web = with_identity(service("web", "10.96.0.1"), FAR_ID);
    let state = snapshot(&[serving(pod("a", "10.0.0.1"), &web)], std::slice::from_ref(&web));
    let resolved = expect(&state, "10.96.0.1:80", "hbone 10.0.0.1:15008 10.0.0.1:8080 far+sa (service)");
    assert_eq!(resolved.destination.service.as_deref(), Some(&web));
    let Route::Hbone(target) = route(&resolved) else { panic!("{resolved:?}") };
    assert_eq!(target.pick.service, Some(web.key()));
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
fn a_passthrough_service_passes_through() {
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
fn an_endpoint_without_an_address_is_denied_or_looked_up() {
    let mut web = service("web", "10.96.0.1");
    web.ip_families = Some(isthmus_model::IpFamilies::Ipv6);
    let state = snapshot(&[serving(pod("a", "10.0.0.1"), &web)], &[web]);
    expect(
        &state,
        "10.96.0.1:80",
        "deny: no usable address for workload: c//Pod/ns/a: it has none, or none of an IP family of the service",
    );
    let web = service("web", "10.96.0.1");
    let mut named = serving(pod("a", "10.0.0.1"), &web);
    named.addresses.clear();
    named.hostname = "example.com".into();
    expect(&snapshot(&[named], &[web]), "10.96.0.1:80", "look up example.com of c//Pod/ns/a");
}

#[test]
fn a_services_waypoint_is_never_bypassed() {
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
fn a_waypoint_may_be_a_workload_by_hostname_or_sandwiched() {
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
fn weighted_waypoints_share_connections_and_zero_weights_fall_back() {
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
fn a_workloads_waypoint_applies_when_the_workload_is_addressed() {
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
fn a_waypoint_workload_does_not_route_to_itself() {
    let mut behind = pod("a", "10.0.0.1");
    behind.waypoint = Some(by_address(NETWORK, "10.0.0.7"));
    let wp = pod("wp", "10.0.0.7");
    let state = snapshot(&[behind, wp.clone()], &[]);
    assert_eq!(line(&outcome(&state, &wp, "10.0.0.1:80")), "hbone 10.0.0.1:15008 10.0.0.1:80 sa (workload)");
    expect(&state, "10.0.0.1:80", "hbone 10.0.0.7:15008 10.0.0.1:80 sa (workload waypoint)");
}

#[test]
fn an_address_of_both_a_workload_and_a_service_takes_no_service_waypoint() {
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
    let Route::DoubleHbone(target) = route(&resolved) else { panic!("{resolved:?}") };
    assert_eq!(target.outer.identities.as_slice(), [GATEWAY_ID.parse().unwrap()]);
    let gateway = &target.outer.pick.workload;
    assert_eq!(gateway.service_account.as_str(), "gateway-sa");
    assert_eq!(resolved.destination.workload.as_ref(), Some(gateway));
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
fn missing_gateways_and_identities_deny_other_networks() {
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
            "deny: service ns/web.ns.svc.cluster.local has no subject alternative names, so its endpoints on another \
             network cannot be verified",
        ),
    ];
    for (service, workloads, want) in cases {
        let resolved = expect(&snapshot(&workloads, std::slice::from_ref(service)), "10.96.0.1:80", want);
        assert_eq!(resolved.reason, Reason::Denied);
    }
    let want = "look up gw.example.com of NetworkGateway/west/gw/15008";
    expect(&snapshot(&[by_hostname, no_address], &[web]), "10.96.0.1:80", want);
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
        "deny: service ns/waypoint.ns.svc.cluster.local has no subject alternative names, so its endpoints on another \
         network cannot be verified",
    );
}

#[test]
fn equal_arguments_resolve_equally() {
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

mod avoid;
mod kinds;
