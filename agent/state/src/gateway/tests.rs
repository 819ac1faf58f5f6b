use super::*;
use crate::fixture::{
    NETWORK, by_name, network_gateway, pod, rng, service, serving, snapshot, split_horizon, unhealthy,
};
use isthmus_model::Protocol;

const HOST: &str = "web.ns.svc.cluster.local";

fn target(snapshot: &Snapshot, host: &str, port: u16) -> Result<GatewayTarget, GatewayRefusal> {
    let global = |key: &NamespacedHostname| key.hostname.as_str() != "local.ns.svc.cluster.local";
    gateway_target(snapshot, &host.into(), port, &NETWORK.into(), global, Avoid::default(), &mut rng())
}

fn line(result: Result<GatewayTarget, GatewayRefusal>) -> String {
    match result {
        Ok(target) => format!("{} {}", target.addr, target.pick.workload.name),
        Err(refusal) => refusal.to_string(),
    }
}

#[test]
fn only_global_services_by_exact_name_and_port_are_forwarded() {
    let (web, local) = (service("web", "10.96.0.1"), service("local", "10.96.0.2"));
    let workload = serving(serving(pod("a", "10.0.0.1"), &web), &local);
    let state = snapshot(&[workload], &[web, local]);
    for (host, port, want) in [
        (HOST, 80, "10.0.0.1:15008 a"),
        (HOST, 8080, "service web.ns.svc.cluster.local has no port 8080"),
        ("local.ns.svc.cluster.local", 80, "service is not global: local.ns.svc.cluster.local"),
        ("web", 80, "unknown service: web"),
        ("web.ns", 80, "unknown service: web.ns"),
        ("WEB.ns.svc.cluster.local.", 80, "10.0.0.1:15008 a"),
        ("10.96.0.1", 80, "unknown service: 10.96.0.1"),
        ("", 80, "unknown service: "),
    ] {
        assert_eq!(line(target(&state, host, port)), want);
    }
}

#[test]
fn only_healthy_mesh_endpoints_of_our_own_network_are_chosen() {
    let web = service("web", "10.96.0.1");
    let mut plain = serving(pod("plain", "10.0.0.2"), &web);
    plain.protocol = Protocol::Tcp;
    let mut remote = serving(pod("remote", "10.0.0.3"), &web);
    remote.network = "west".into();
    let mut bare = serving(pod("bare", "10.0.0.4"), &web);
    bare.addresses.clear();
    // Even one that claims to be of our network goes nowhere without an address.
    let mut own_split = split_horizon(&web, "192.168.0.1");
    own_split.network = NETWORK.into();
    let unusable = vec![
        plain,
        remote,
        bare,
        unhealthy(serving(pod("sick", "10.0.0.5"), &web)),
        split_horizon(&web, "192.168.0.1"),
        network_gateway("192.168.0.1"),
    ];
    let refused = "no healthy upstream in this network: web.ns.svc.cluster.local:80";
    for workload in unusable.iter().chain([&own_split]) {
        let state = snapshot(std::slice::from_ref(workload), std::slice::from_ref(&web));
        assert_eq!(line(target(&state, HOST, 80)), refused, "{}", workload.uid);
    }
    let mut all = unusable;
    all.push(serving(pod("good", "10.0.0.1"), &web));
    let state = snapshot(&all, &[web]);
    for seed in 0..50 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let got =
            gateway_target(&state, &HOST.into(), 80, &NETWORK.into(), |_| true, Avoid::default(), &mut rng)
                .unwrap();
        assert_eq!(got.pick.workload.name.as_str(), "good");
    }
}

#[test]
fn a_port_without_a_number_needs_an_endpoint_that_knows_it() {
    let mut web = service("web", "10.96.0.1");
    web.ports = [(80, 0)].into();
    let mut knows = pod("knows", "10.0.0.1");
    knows.services.insert(web.key(), [(80, 8080)].into());
    let unknowing = serving(pod("unknowing", "10.0.0.2"), &web);
    let state = snapshot(&[knows, unknowing], &[web]);
    assert_eq!(line(target(&state, HOST, 80)), "10.0.0.1:15008 knows");
}

#[test]
fn a_services_waypoint_is_never_bypassed() {
    let mut web = service("web", "10.96.0.1");
    web.waypoint = Some(by_name("ns/waypoint.ns.svc.cluster.local"));
    let mut waypoint = service("waypoint", "10.96.0.7");
    waypoint.ports = [(15008, 15008)].into();
    let endpoint = serving(pod("a", "10.0.0.1"), &web);
    let here = serving(pod("wp", "10.0.0.7"), &waypoint);
    let services = [web, waypoint.clone()];
    assert_eq!(line(target(&snapshot(&[endpoint.clone(), here], &services), HOST, 80)), "10.0.0.7:15008 wp");
    let elsewhere = split_horizon(&waypoint, "192.168.0.1");
    for workloads in [vec![endpoint.clone()], vec![endpoint, elsewhere]] {
        let got = line(target(&snapshot(&workloads, &services), HOST, 80));
        assert_eq!(got, "unknown waypoint: ns/waypoint.ns.svc.cluster.local");
    }
}

#[test]
fn a_global_service_wins_a_hostname() {
    let named = |namespace: &str| {
        let mut service = service("web", "10.96.0.1");
        service.namespace = namespace.into();
        service
    };
    let (mut private, shared) = (named("private"), named("shared"));
    private.canonical = true;
    let workloads = [serving(pod("p", "10.0.0.1"), &private), serving(pod("s", "10.0.0.2"), &shared)];
    let state = snapshot(&workloads, &[private, shared]);
    let global = |key: &NamespacedHostname| key.namespace.as_str() == "shared";
    let got = gateway_target(&state, &HOST.into(), 80, &NETWORK.into(), global, Avoid::default(), &mut rng());
    assert_eq!(line(got), "10.0.0.2:15008 s");
}

#[test]
fn the_address_has_a_family_of_the_service() {
    use isthmus_model::IpFamilies;
    for (families, want) in [
        (None, "10.0.0.1:15008 a"),
        (Some(IpFamilies::Ipv6), "[fd00::1]:15008 a"),
        (Some(IpFamilies::Dual), "10.0.0.1:15008 a"),
    ] {
        let mut web = service("web", "10.96.0.1");
        web.ip_families = families;
        let mut workload = serving(pod("a", "10.0.0.1"), &web);
        workload.addresses.insert(0, "fd00::1".parse().unwrap());
        assert_eq!(line(target(&snapshot(&[workload], &[web]), HOST, 80)), want);
    }
}
