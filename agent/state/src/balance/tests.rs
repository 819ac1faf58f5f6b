use std::collections::BTreeMap;

use isthmus_model::service::HealthPolicy;
use isthmus_model::{Service, Workload};

use super::*;
use crate::fixture::{balanced, by_address, pod, rng, service, serving, snapshot, split_horizon, unhealthy};
use crate::target::{PortRule, ServicePort};
use isthmus_model::Locality;
use isthmus_model::service::LbMode;
use isthmus_model::service::LbScope;
use isthmus_model::service::LbScope::{Cluster, Network, Node, Region, Subzone, Zone};

/// How often each endpoint is chosen in 4000 connections.
fn counts(source: &Workload, service: &Service, workloads: &[Workload]) -> BTreeMap<String, u32> {
    let state = snapshot(workloads, std::slice::from_ref(service));
    let service_port = ServicePort::new(service, 80, PortRule::Standard);
    let (mut rng, mut counts) = (rng(), BTreeMap::new());
    let Some(set) = state.services.endpoints(&service_port.key) else { return counts };
    for _ in 0..4000 {
        let query = EndpointQuery { origin: QueryOrigin::Client(source), service_port: &service_port };
        if let Ok(chosen) = choose(set, &query, |_| false, &mut rng) {
            *counts.entry(chosen.workload.name.to_string()).or_default() += 1;
        }
    }
    counts
}

fn names(counts: &BTreeMap<String, u32>) -> Vec<&str> {
    counts.keys().map(String::as_str).collect()
}

fn placed(name: &str, region: &str, zone: &str, node: &str) -> Workload {
    let mut workload = pod(name, &format!("10.0.1.{}", name.len()));
    workload.locality = Locality { region: region.into(), zone: zone.into(), subzone: "".into() };
    workload.node = node.into();
    workload
}

#[test]
fn all_healthy_endpoints_compete_by_capacity() {
    let web = service("web", "10.96.0.1");
    let mut heavy = serving(pod("heavy", "10.0.0.2"), &web);
    heavy.capacity = 3;
    let mut idle = serving(pod("idle", "10.0.0.3"), &web);
    idle.capacity = 0;
    let light = serving(pod("light", "10.0.0.1"), &web);
    let sick = unhealthy(serving(pod("sick", "10.0.0.4"), &web));
    let counts = counts(&pod("client", "10.0.0.9"), &web, &[heavy, idle, light, sick]);
    assert_eq!(names(&counts), ["heavy", "light"]);
    assert!(counts["heavy"].abs_diff(3000) < 150, "{counts:?}");
}

#[test]
fn unhealthy_endpoints_take_part_only_with_allow_all() {
    let mut web = balanced(service("web", "10.96.0.1"), LbMode::Standard, &[]);
    let sick = [unhealthy(serving(pod("sick", "10.0.0.4"), &web))];
    let client = pod("client", "10.0.0.9");
    assert!(counts(&client, &web, &sick).is_empty());
    if let Some(balancer) = &mut web.load_balancer {
        balancer.health_policy = HealthPolicy::AllowAll;
    }
    assert_eq!(names(&counts(&client, &web, &sick)), ["sick"]);
}

#[test]
fn unreachable_endpoints_and_those_without_the_port_take_no_part() {
    let mut web = service("web", "10.96.0.1");
    web.ports = [(80, 0)].into();
    let with_port = |name: &str, address: &str, port| {
        let mut workload = pod(name, address);
        workload.services.insert(web.key(), [(80, port)].into());
        workload
    };
    let mut nowhere = with_port("nowhere", "10.0.0.5", 8080);
    nowhere.addresses.clear();
    nowhere.capacity = 100;
    let mut named = with_port("named", "10.0.0.6", 8080);
    named.addresses.clear();
    named.hostname = "example.com".into();
    let mut no_port = with_port("no-port", "10.0.0.7", 0);
    no_port.capacity = 100;
    let workloads = [nowhere, named, no_port, with_port("good", "10.0.0.8", 8080)];
    let counts = counts(&pod("client", "10.0.0.9"), &web, &workloads);
    assert_eq!(names(&counts), ["good", "named"]);
    assert!(counts["good"].abs_diff(2000) < 150, "{counts:?}");
    assert_eq!(counts.values().sum::<u32>(), 4000);
}

#[test]
fn without_preferences_endpoints_of_other_networks_take_part() {
    let web = service("web", "10.96.0.1");
    let mut without_gateway = split_horizon(&web, "192.168.0.1");
    without_gateway.network_gateway = None;
    let near = serving(pod("near", "10.0.0.1"), &web);
    let client = pod("client", "10.0.0.9");
    let both = counts(&client, &web, &[near.clone(), split_horizon(&web, "192.168.0.1")]);
    assert_eq!(names(&both), ["near", "split"]);
    assert_eq!(names(&counts(&client, &web, &[near.clone(), without_gateway])), ["near"]);
    // Seen from its own network it has neither an address nor a need for a gateway.
    let mut remote = client.clone();
    remote.network = "west".into();
    let mut own = split_horizon(&web, "192.168.0.1");
    own.network_gateway = Some(by_address("west", "192.168.0.1"));
    assert!(counts(&remote, &web, &[own]).is_empty());
}

#[test]
fn strict_requires_every_scope_to_match() {
    let client = placed("client", "r1", "z1", "n1");
    let cases: [(&[LbScope], &[&str]); 4] = [
        (&[Node], &["same"]),
        (&[Region, Zone], &["same", "zone"]),
        (&[Region], &["region", "same", "zone"]),
        (&[Network, Region, Zone, Subzone, Cluster, Node], &["same"]),
    ];
    for (scopes, want) in cases {
        let web = balanced(service("web", "10.96.0.1"), LbMode::Strict, scopes);
        let workloads = [
            serving(placed("same", "r1", "z1", "n1"), &web),
            serving(placed("zone", "r1", "z1", "n2"), &web),
            serving(placed("region", "r1", "z2", "n3"), &web),
            serving(placed("far", "r2", "z1", "n4"), &web),
        ];
        assert_eq!(names(&counts(&client, &web, &workloads)), want, "{scopes:?}");
    }
    let web = balanced(service("web", "10.96.0.1"), LbMode::Strict, &[Node]);
    assert!(counts(&client, &web, &[serving(placed("far", "r1", "z1", "n4"), &web)]).is_empty());
}

#[test]
fn failover_takes_the_highest_rank_with_an_endpoint() {
    let client = placed("client", "r1", "z1", "n1");
    let web = balanced(service("web", "10.96.0.1"), LbMode::Failover, &[Region, Zone, Node]);
    let mut workloads = vec![
        unhealthy(serving(placed("same", "r1", "z1", "n1"), &web)),
        serving(placed("zone", "r1", "z1", "n2"), &web),
        serving(placed("zone-too", "r1", "z1", "n5"), &web),
        serving(placed("region", "r1", "z2", "n3"), &web),
        serving(placed("far", "r2", "z1", "n4"), &web),
    ];
    for want in [&["zone", "zone-too"][..], &["zone-too"], &["region"], &["far"], &[]] {
        let counts = counts(&client, &web, &workloads);
        assert_eq!(names(&counts), want);
        if workloads.len() > 1 {
            workloads.remove(1);
        }
    }
}

#[test]
fn failover_skips_near_endpoints_without_the_port() {
    let client = placed("client", "r1", "z1", "n1");
    let mut web = balanced(service("web", "10.96.0.1"), LbMode::Failover, &[Region, Zone]);
    web.ports = [(80, 0)].into();
    let with_port = |mut workload: Workload, port| {
        workload.services.insert(web.key(), [(80, port)].into());
        workload
    };
    let unusable = with_port(placed("near", "r1", "z1", "n2"), 0);
    let far = [
        with_port(placed("far", "r1", "z2", "n3"), 8080),
        with_port(placed("far-too", "r1", "z3", "n4"), 8080),
    ];
    let mut workloads = [vec![unusable], far.to_vec()].concat();
    let spread = counts(&client, &web, &workloads);
    assert_eq!(names(&spread), ["far", "far-too"]);
    assert!(spread["far"].abs_diff(2000) < 150, "{spread:?}");
    workloads.push(with_port(placed("near-too", "r1", "z1", "n5"), 8080));
    let all = counts(&client, &web, &workloads);
    assert_eq!(all, [("near-too".to_owned(), 4000)].into());
}

#[test]
fn a_network_in_first_place_outranks_all_other_scopes() {
    let scopes = [Network, Region, Zone];
    let source = placed("client", "r1", "z1", "n1");
    let remote = |mut workload: Workload| {
        workload.network = "west".into();
        workload
    };
    let cases = [
        (placed("a", "r1", "z1", ""), 5),
        (placed("a", "r1", "z2", ""), 4),
        (placed("a", "r2", "z1", ""), 3),
        (remote(placed("a", "r1", "z1", "")), 2),
        (remote(placed("a", "r1", "z2", "")), 1),
        (remote(placed("a", "r2", "z1", "")), 0),
    ];
    for (endpoint, want) in &cases {
        assert_eq!(locality::rank(&source, endpoint, &scopes), *want);
    }
    let network_later = [Region, Network, Zone];
    let ranks = cases.iter().map(|(endpoint, _)| locality::rank(&source, endpoint, &network_later));
    assert_eq!(ranks.collect::<Vec<_>>(), [3, 2, 0, 1, 1, 0]);
    assert_eq!(
        locality::rank(&pod("a", "10.0.0.1"), &pod("b", "10.0.0.2"), &[Region, Zone]),
        2,
        "unknown = unknown"
    );
}

mod odds;
