//! Endpoints that are to be avoided, and workloads that are known by their hostname only.

use isthmus_model::WorkloadUid;

use super::*;
use crate::route::{Pick, Picks};

fn uids(names: &[&str]) -> Vec<WorkloadUid> {
    names.iter().map(|name| format!("c//Pod/ns/{name}").into()).collect()
}

#[track_caller]
fn expect_avoiding(snapshot: &Snapshot, original: &str, tried: &[&str], want: &str) -> Resolved {
    let (source, tried) = (client(), uids(tried));
    let avoid = Avoid { tried: &tried, ..Avoid::default() };
    let to = original.parse().unwrap();
    let resolved = resolve_avoiding(snapshot, &source, to, &NETWORK.into(), avoid, &mut rng());
    assert_eq!(line(&resolved), want, "{original}");
    resolved
}

/// The deny line when all endpoints of an address are to be avoided.
fn all_avoided(original: &str) -> String {
    format!(
        "deny: no healthy upstream: {original}: every endpoint that qualifies is ejected or was tried by this \
         connection"
    )
}

#[test]
fn an_endpoint_to_avoid_is_replaced_by_another_one_and_the_connection_denied_without_any() {
    let web = service("web", "10.96.0.1");
    let workloads = [serving(pod("a", "10.0.0.1"), &web), serving(pod("b", "10.0.0.2"), &web)];
    let state = snapshot(&workloads, std::slice::from_ref(&web));
    let resolved =
        expect_avoiding(&state, "10.96.0.1:80", &["a"], "hbone 10.0.0.2:15008 10.0.0.2:8080 sa (service)");
    let Picks::Peer(pick) = route(&resolved).picks() else { panic!("{resolved:?}") };
    let want = Pick {
        role: Role::Endpoint,
        service: Some(web.key()),
        port: 80,
        workload: Arc::new(workloads[1].clone()),
        of: 2,
        host: None,
    };
    assert_eq!(*pick, want);
    expect_avoiding(&state, "10.96.0.1:80", &["a", "b"], &all_avoided("10.96.0.1:80"));
    // A workload that is addressed itself has no substitute.
    let resolved = expect_avoiding(&state, "10.0.0.1:80", &["a"], &all_avoided("10.0.0.1:80"));
    assert_eq!(resolved.destination.workload.unwrap().name.as_str(), "a");
}

#[test]
fn a_waypoint_to_avoid_is_replaced_by_another_one_and_never_bypassed() {
    let waypoint = waypoint_service();
    let web = via(service("web", "10.96.0.1"), by_name("ns/waypoint.ns.svc.cluster.local"));
    let workloads = [
        serving(pod("a", "10.0.0.1"), &web),
        serving(pod("wp", "10.0.0.7"), &waypoint),
        serving(pod("wp-2", "10.0.0.8"), &waypoint),
    ];
    let state = snapshot(&workloads, &[web, waypoint.clone()]);
    let other = "hbone 10.0.0.8:15008 10.96.0.1:80 sa (service waypoint)";
    let resolved = expect_avoiding(&state, "10.96.0.1:80", &["wp"], other);
    let Picks::Peer(pick) = route(&resolved).picks() else { panic!("{resolved:?}") };
    assert_eq!(
        (pick.role, pick.service.clone(), pick.port, pick.of),
        (Role::Waypoint, Some(waypoint.key()), 15008, 2)
    );
    expect_avoiding(&state, "10.96.0.1:80", &["wp", "wp-2"], &all_avoided("10.96.0.1:80"));
}

#[test]
fn a_gateway_to_avoid_is_replaced_by_another_one_of_its_network() {
    let web = with_identity(service("web", "10.96.0.1"), FAR_ID);
    let mut gateway = service("gateway", "192.168.0.100");
    gateway.vips[0].network = REMOTE.into();
    gateway.ports = [(15008, 15008)].into();
    let one = serving(network_gateway("192.168.0.2"), &gateway);
    let other = serving(network_gateway("192.168.0.3"), &gateway);
    let workloads = [split_horizon(&web, "192.168.0.100"), one.clone(), other];
    let services = [web, gateway];
    let state = snapshot(&workloads, &services);
    let tried = [one.uid];
    let avoid = Avoid { tried: &tried, ..Avoid::default() };
    for seed in 0..20 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let to = "10.96.0.1:80".parse().unwrap();
        let resolved = resolve_avoiding(&state, &client(), to, &NETWORK.into(), avoid, &mut rng);
        let route = route(&resolved);
        assert_eq!(route.addr(), "192.168.0.3:15008".parse().unwrap());
        let roles: Vec<_> = route.picks().iter().map(|pick| (pick.role, pick.of)).collect();
        assert_eq!(roles, [(Role::Endpoint, 1), (Role::Gateway, 2)]);
    }
}

#[test]
fn a_remote_endpoint_that_was_tried_gives_way_to_a_local_one_and_is_chosen_when_it_is_allowed_again() {
    let web = with_identity(service("web", "10.96.0.1"), FAR_ID);
    let remote = split_horizon(&web, "192.168.0.2");
    let tried = [remote.uid.clone()];
    let mut workloads = vec![remote, network_gateway("192.168.0.2"), serving(pod("a", "10.0.0.1"), &web)];
    let resolve = |workloads: &[Workload], avoid| {
        let state = snapshot(workloads, std::slice::from_ref(&web));
        let to = "10.96.0.1:80".parse().unwrap();
        line(&resolve_avoiding(&state, &client(), to, &NETWORK.into(), avoid, &mut rng()))
    };
    let avoid = Avoid { tried_remote: &tried, ..Avoid::default() };
    assert_eq!(resolve(&workloads, avoid), "hbone 10.0.0.1:15008 10.0.0.1:8080 far+sa (service)");
    workloads.pop();
    assert_eq!(resolve(&workloads, avoid), all_avoided("10.96.0.1:80"));
    let double = "double 192.168.0.2:15008 web.ns.svc.cluster.local:80 gateway-sa \
                  [web.ns.svc.cluster.local:80 far] (other network)";
    assert_eq!(resolve(&workloads, Avoid::default()), double);
}

/// Gives the pending choice of `original` an address and expects this route.
#[track_caller]
fn expect_found(snapshot: &Snapshot, original: &str, want: &str) {
    let resolved = outcome(snapshot, &client(), original);
    let Decision::NeedsAddress(pending) = resolved.decision.clone() else { panic!("{resolved:?}") };
    assert_eq!(pending.hostname().as_str(), "db.example.com");
    assert_eq!(pending.workload().hostname.as_str(), "db.example.com");
    let decision = Decision::Connect(pending.at("203.0.113.5".parse().unwrap()));
    assert_eq!(line(&Resolved { decision, ..resolved }), want);
}

#[test]
fn a_workload_known_by_hostname_is_reached_at_the_address_that_was_found() {
    let web = with_identity(service("web", "10.96.0.1"), FAR_ID);
    let mut named = serving(pod("db", "10.0.0.1"), &web);
    named.addresses.clear();
    named.hostname = "db.example.com".into();
    let state = snapshot(std::slice::from_ref(&named), std::slice::from_ref(&web));
    expect_found(&state, "10.96.0.1:80", "hbone 203.0.113.5:15008 203.0.113.5:8080 far+sa (service)");
    let state = snapshot(&[in_plain_tcp(named.clone())], std::slice::from_ref(&web));
    expect_found(&state, "10.96.0.1:80", "tcp 203.0.113.5:8080 203.0.113.5:8080 (service)");
    // A waypoint is asked for the original destination.
    let behind = via(service("web", "10.96.0.1"), by_name("ns/db.example.com"));
    let state = snapshot(&[named], &[behind]);
    expect_found(&state, "10.96.0.1:80", "hbone 203.0.113.5:15008 10.96.0.1:80 sa (service waypoint)");
    // A gateway, as cloud load balancers are known.
    let mut gateway = network_gateway("192.168.0.2");
    gateway.addresses.clear();
    gateway.hostname = "db.example.com".into();
    let mut split = split_horizon(&web, "192.168.0.2");
    split.network_gateway = Some(by_name("ns/db.example.com"));
    let double = "double 203.0.113.5:15008 web.ns.svc.cluster.local:80 gateway-sa \
                  [web.ns.svc.cluster.local:80 far] (other network)";
    expect_found(&snapshot(&[split, gateway], &[web]), "10.96.0.1:80", double);
}

#[test]
fn the_lookup_finishes_the_choice_that_was_made() {
    let web = service("web", "10.96.0.1");
    let named = |number: u32| {
        let mut named = serving(pod(&format!("db-{number}"), "10.0.0.1"), &web);
        named.addresses.clear();
        named.hostname = format!("db-{number}.example.com").into();
        named
    };
    let workloads: Vec<_> = (0..50).map(named).collect();
    let state = snapshot(&workloads, std::slice::from_ref(&web));
    let mut rng = rng();
    for _ in 0..50 {
        let to = "10.96.0.1:80".parse().unwrap();
        let resolved = resolve(&state, &client(), to, &NETWORK.into(), &mut rng);
        let Decision::NeedsAddress(pending) = resolved.decision else { panic!("{:?}", resolved.decision) };
        let chosen = Arc::clone(pending.workload());
        assert_eq!(resolved.destination.workload.as_ref(), Some(&chosen));
        let route = pending.at("203.0.113.5".parse().unwrap());
        let Picks::Peer(pick) = route.picks() else { panic!("{route:?}") };
        assert!(Arc::ptr_eq(&pick.workload, &chosen));
    }
}

#[test]
fn a_hostname_never_replaces_an_address() {
    let mut web = service("web", "10.96.0.1");
    web.ip_families = Some(isthmus_model::IpFamilies::Ipv6);
    let mut both = serving(pod("db", "10.0.0.1"), &web);
    both.hostname = "db.example.com".into();
    let state = snapshot(&[both], &[web]);
    expect(
        &state,
        "10.96.0.1:80",
        "deny: no usable address for workload: c//Pod/ns/db: it has none, or none of an IP family of the service",
    );
    expect(&state, "10.0.0.1:80", "hbone 10.0.0.1:15008 10.0.0.1:80 sa (workload)");
}
