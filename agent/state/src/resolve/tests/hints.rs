//! Who is to be avoided, and what names were found to mean.

use std::net::IpAddr;

use isthmus_model::Hostname;

use super::*;
use crate::hints::Candidate;
use crate::route::Pick;

/// Avoids workloads by name, and knows one address.
#[derive(Default)]
struct Told<'a> {
    avoid: &'a [&'a str],
    known: Option<(&'a str, &'a str)>,
}

impl Hints for Told<'_> {
    fn avoids(&self, candidate: &Candidate<'_>) -> bool {
        self.avoid.contains(&candidate.workload.uid.as_str().rsplit('/').next().unwrap())
    }

    fn address_of(&self, hostname: &Hostname) -> Option<IpAddr> {
        let (name, address) = self.known?;
        (hostname.as_str() == name).then(|| address.parse().unwrap())
    }
}

#[track_caller]
fn told(snapshot: &Snapshot, original: &str, hints: &Told<'_>, want: &str) -> Resolved {
    let source = client();
    let resolved =
        resolve_with(snapshot, &source, original.parse().unwrap(), &NETWORK.into(), hints, &mut rng());
    assert_eq!(line(&resolved), want, "{original}");
    resolved
}

fn avoiding<'a>(avoid: &'a [&'a str]) -> Told<'a> {
    Told { avoid, known: None }
}

#[test]
fn another_endpoint_takes_the_place_of_one_to_be_avoided_and_nobody_when_all_are() {
    let web = service("web", "10.96.0.1");
    let workloads = [serving(pod("a", "10.0.0.1"), &web), serving(pod("b", "10.0.0.2"), &web)];
    let state = snapshot(&workloads, std::slice::from_ref(&web));
    let resolved =
        told(&state, "10.96.0.1:80", &avoiding(&["a"]), "hbone 10.0.0.2:15008 10.0.0.2:8080 sa (service)");
    let Route::Hbone(upstream) = resolved.route else { panic!("{:?}", resolved.route) };
    let want = Pick {
        role: Role::Endpoint,
        service: Some(web.key()),
        port: 80,
        workload: Arc::clone(&upstream.workload),
        of: 2,
    };
    assert_eq!(upstream.picks, [want]);
    let refused = "deny: no healthy upstream: 10.96.0.1:80: all that qualify refused lately";
    told(&state, "10.96.0.1:80", &avoiding(&["a", "b"]), refused);
    // A workload that is meant itself has no substitute.
    let refused = "deny: no healthy upstream: 10.0.0.1:80: all that qualify refused lately";
    let resolved = told(&state, "10.0.0.1:80", &avoiding(&["a"]), refused);
    assert_eq!(resolved.destination.workload.unwrap().name.as_str(), "a");
}

#[test]
fn a_waypoint_to_be_avoided_is_replaced_by_another_one_and_never_left_out() {
    let waypoint = waypoint_service();
    let web = via(service("web", "10.96.0.1"), by_name("ns/waypoint.ns.svc.cluster.local"));
    let workloads = [
        serving(pod("a", "10.0.0.1"), &web),
        serving(pod("wp", "10.0.0.7"), &waypoint),
        serving(pod("wp-2", "10.0.0.8"), &waypoint),
    ];
    let state = snapshot(&workloads, &[web, waypoint.clone()]);
    let other = "hbone 10.0.0.8:15008 10.96.0.1:80 sa (service waypoint)";
    let resolved = told(&state, "10.96.0.1:80", &avoiding(&["wp"]), other);
    let Route::Hbone(upstream) = resolved.route else { panic!("{:?}", resolved.route) };
    let [pick] = &*upstream.picks else { panic!("{:?}", upstream.picks) };
    assert_eq!(
        (pick.role, pick.service.clone(), pick.port, pick.of),
        (Role::Waypoint, Some(waypoint.key()), 15008, 2)
    );
    let refused = "deny: no healthy upstream: 10.96.0.1:80: all that qualify refused lately";
    told(&state, "10.96.0.1:80", &avoiding(&["wp", "wp-2"]), refused);
}

#[test]
fn a_gateway_to_be_avoided_is_replaced_by_another_one_of_its_network() {
    let web = with_identity(service("web", "10.96.0.1"), FAR_ID);
    let mut gateway = service("gateway", "192.168.0.100");
    gateway.vips[0].network = REMOTE.into();
    gateway.ports = [(15008, 15008)].into();
    let one = serving(network_gateway("192.168.0.2"), &gateway);
    let other = serving(network_gateway("192.168.0.3"), &gateway);
    let workloads = [split_horizon(&web, "192.168.0.100"), one.clone(), other];
    let services = [web, gateway];
    let state = snapshot(&workloads, &services);
    let avoid_first = |candidate: &Candidate<'_>| candidate.workload.uid == one.uid;
    struct Not<F>(F);
    impl<F: Fn(&Candidate<'_>) -> bool> Hints for Not<F> {
        fn avoids(&self, candidate: &Candidate<'_>) -> bool {
            (self.0)(candidate)
        }
        fn address_of(&self, _: &Hostname) -> Option<IpAddr> {
            None
        }
    }
    for seed in 0..20 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let to = "10.96.0.1:80".parse().unwrap();
        let resolved = resolve_with(&state, &client(), to, &NETWORK.into(), &Not(avoid_first), &mut rng);
        let Route::DoubleHbone(upstream) = resolved.route else { panic!("{:?}", resolved.route) };
        assert_eq!(upstream.tcp_to, "192.168.0.3:15008".parse().unwrap());
        let roles: Vec<_> = upstream.picks.iter().map(|pick| (pick.role, pick.of)).collect();
        assert_eq!(roles, [(Role::Endpoint, 1), (Role::Gateway, 2)]);
    }
}

#[test]
fn a_workload_known_by_name_is_reached_at_the_address_that_was_found() {
    let web = with_identity(service("web", "10.96.0.1"), FAR_ID);
    let known = Told { avoid: &[], known: Some(("db.example.com", "203.0.113.5")) };
    let mut named = serving(pod("db", "10.0.0.1"), &web);
    named.addresses.clear();
    named.hostname = "db.example.com".into();
    let state = snapshot(std::slice::from_ref(&named), std::slice::from_ref(&web));
    told(&state, "10.96.0.1:80", &known, "hbone 203.0.113.5:15008 203.0.113.5:8080 far+sa (service)");
    let state = snapshot(&[in_plain_tcp(named)], std::slice::from_ref(&web));
    told(&state, "10.96.0.1:80", &known, "tcp 203.0.113.5:8080 203.0.113.5:8080 (service)");
    // A gateway, as cloud load balancers are known.
    let mut gateway = network_gateway("192.168.0.2");
    gateway.addresses.clear();
    gateway.hostname = "db.example.com".into();
    let mut split = split_horizon(&web, "192.168.0.2");
    split.network_gateway = Some(by_name("ns/db.example.com"));
    let double = "double 203.0.113.5:15008 web.ns.svc.cluster.local:80 gateway-sa \
                  [web.ns.svc.cluster.local:80 far] (other network)";
    told(&snapshot(&[split, gateway], &[web]), "10.96.0.1:80", &known, double);
}

#[test]
fn a_name_never_replaces_an_address() {
    let mut web = service("web", "10.96.0.1");
    web.ip_families = Some(isthmus_model::IpFamilies::Ipv6);
    let mut both = serving(pod("db", "10.0.0.1"), &web);
    both.hostname = "db.example.com".into();
    let known = Told { avoid: &[], known: Some(("db.example.com", "203.0.113.5")) };
    let state = snapshot(&[both], &[web]);
    told(&state, "10.96.0.1:80", &known, "deny: no address fits for workload: c//Pod/ns/db");
    told(&state, "10.0.0.1:80", &known, "hbone 10.0.0.1:15008 10.0.0.1:80 sa (workload)");
}
