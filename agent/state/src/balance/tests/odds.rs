//! The tables against the plain algorithm: walk all endpoints, drop those that take no part, keep the highest rank, weigh
//! by capacity. The probabilities are compared, not samples of them.

use isthmus_model::workload::{ApplicationTunnel, TunnelKind};
use isthmus_model::{Protocol, WorkloadUid};

use super::*;
use crate::fixture::{NETWORK, REMOTE};
use crate::target::is_reachable;
use crate::{Batch, Snapshot};

/// The probability of each endpoint, by rank, highest first.
type Odds = Vec<BTreeMap<WorkloadUid, f64>>;

/// The reference implementation's algorithm.
fn by_walking(state: &Snapshot, query: &EndpointQuery<'_>) -> Odds {
    let service = query.service_port.service;
    let balancer = service.load_balancer.as_ref();
    let scopes: &[LbScope] = balancer.map_or(&[], |balancer| &balancer.routing_preferences);
    let mut ranks = BTreeMap::<usize, Vec<&Arc<Workload>>>::new();
    for endpoint in state.endpoints(&query.service_port.key).map(|endpoint| endpoint.workload) {
        let healthy = endpoint.status == isthmus_model::Health::Healthy
            || balancer.is_some_and(|balancer| balancer.health_policy == HealthPolicy::AllowAll);
        if !healthy || query.service_port.port_of(endpoint).is_none() {
            continue;
        }
        let rank = match query.origin {
            QueryOrigin::Gateway(own) => is_gateway_endpoint(endpoint, own).then_some(0),
            QueryOrigin::Client(source) if !is_reachable(endpoint, source) => None,
            QueryOrigin::Client(source) => match balancer.map(|balancer| balancer.mode) {
                None | Some(LbMode::Standard | LbMode::Passthrough) => Some(0),
                Some(LbMode::Failover) => Some(locality::rank(source, endpoint, scopes)),
                Some(LbMode::Strict) => {
                    // Every leading scope matches, whatever the first one is worth.
                    let leading = scopes.iter().take_while(|scope| {
                        locality::value(**scope, source) == locality::value(**scope, endpoint)
                    });
                    (leading.count() == scopes.len()).then_some(0)
                }
            },
        };
        if let Some(rank) = rank {
            ranks.entry(rank).or_default().push(endpoint);
        }
    }
    let tiers = ranks.into_values().rev().map(|members| {
        let total: f64 = members.iter().map(|member| f64::from(member.capacity)).sum();
        let with_weight = members.into_iter().filter(|member| member.capacity > 0);
        with_weight.map(|member| (member.uid.clone(), f64::from(member.capacity) / total)).collect()
    });
    tiers.filter(|tier: &BTreeMap<_, _>| !tier.is_empty()).collect()
}

fn by_table(set: Option<&EndpointSet>, query: &EndpointQuery<'_>) -> Odds {
    let Some(set) = set else { return Odds::new() };
    set.with_table(query, |table| {
        let tiers: Odds = table
            .tiers
            .iter()
            .map(|tier| {
                let odds: BTreeMap<_, _> =
                    tier.odds().into_iter().map(|(at, odds)| (set.at(at).uid.clone(), odds)).collect();
                let all: Vec<_> = tier.all().map(|at| set.at(at).uid.clone()).collect();
                assert_eq!(all.len(), odds.len());
                odds
            })
            .collect();
        assert_eq!(table.count, tiers.iter().map(BTreeMap::len).sum::<usize>());
        tiers
    })
}

#[track_caller]
fn same(table: &Odds, walked: &Odds, what: &str) {
    assert_eq!(table.len(), walked.len(), "{what}");
    for (table, walked) in table.iter().zip(walked) {
        assert!(table.keys().eq(walked.keys()), "{what}");
        for ((uid, got), want) in table.iter().zip(walked.values()) {
            assert!((got - want).abs() < 1e-9, "{what}: {uid} {got} {want}");
        }
    }
}

fn one_of(rng: &mut fastrand::Rng, choices: &[&str]) -> String {
    choices[rng.usize(0..choices.len())].to_owned()
}

fn any_workload(rng: &mut fastrand::Rng, uid: usize, service: &Service) -> Workload {
    let mut workload = pod(&format!("{uid:04}"), &format!("10.1.{}.{}", uid / 256, uid % 256));
    workload.locality = Locality {
        region: one_of(rng, &["r1", "r2", ""]).into(),
        zone: one_of(rng, &["z1", "z2", ""]).into(),
        subzone: one_of(rng, &["s1", "s2"]).into(),
    };
    workload.node = one_of(rng, &["n1", "n2", "n3"]).into();
    workload.cluster_id = one_of(rng, &["c", "d"]).into();
    workload.capacity = [1, 1, 1, 0, 7, u32::MAX][rng.usize(0..6)];
    if rng.u8(0..4) == 0 {
        workload = unhealthy(workload);
    }
    if rng.u8(0..4) == 0 {
        workload.network = REMOTE.into();
        workload.network_gateway = rng.bool().then(|| by_address(REMOTE, "192.168.0.2"));
    }
    if rng.u8(0..5) == 0 {
        workload.addresses.clear();
        workload.hostname = one_of(rng, &["", "example.com"]).as_str().into();
    }
    if rng.u8(0..5) == 0 {
        workload.protocol = Protocol::Tcp;
    }
    if rng.u8(0..6) == 0 {
        workload.application_tunnel = Some(ApplicationTunnel { protocol: TunnelKind::Proxy, port: Some(1) });
    }
    let ports = [(80, [0, 8080][rng.usize(0..2)]), (90, [0, 9090][rng.usize(0..2)])];
    workload.services.insert(service.key(), ports[..rng.usize(0..3)].iter().copied().collect());
    workload
}

fn any_balancer(rng: &mut fastrand::Rng, service: &mut Service) {
    let scopes = [Region, Zone, Subzone, Node, Cluster, Network];
    let modes = [LbMode::Standard, LbMode::Strict, LbMode::Failover, LbMode::Failover, LbMode::Passthrough];
    let mut service_port: Vec<_> = scopes.into_iter().filter(|_| rng.bool()).collect();
    rng.shuffle(&mut service_port);
    if rng.bool() {
        service_port.retain(|scope| *scope != Network);
        service_port.insert(0, Network);
    }
    let mut balanced = balanced(service.clone(), modes[rng.usize(0..5)], &service_port);
    if let Some(balancer) = balanced.load_balancer.as_mut().filter(|_| rng.u8(0..3) == 0) {
        balancer.health_policy = HealthPolicy::AllowAll;
    }
    *service = if rng.u8(0..6) == 0 { Service { load_balancer: None, ..balanced } } else { balanced };
    service.ports = [(80, [0, 8080][rng.usize(0..2)]), (90, 0)][..rng.usize(0..3)].iter().copied().collect();
}

/// Every query to a service.
fn check(state: &Snapshot, service: &Service, sources: &[Workload]) {
    let set = state.services.endpoints(&service.key());
    for port in [80, 90] {
        for rule in [PortRule::Standard, PortRule::Waypoint] {
            let service_port = ServicePort::new(service, port, rule);
            let origins = sources.iter().map(QueryOrigin::Client);
            let (own, other) = (NETWORK.into(), REMOTE.into());
            for origin in origins.chain([QueryOrigin::Gateway(&own), QueryOrigin::Gateway(&other)]) {
                let query = EndpointQuery { origin, service_port: &service_port };
                same(&by_table(set, &query), &by_walking(state, &query), &format!("{query:?}"));
            }
        }
    }
}

#[test]
fn tables_have_the_odds_of_a_linear_walk() {
    let mut rng = fastrand::Rng::with_seed(11);
    for round in 0..40 {
        let mut service = service("web", "10.96.0.1");
        any_balancer(&mut rng, &mut service);
        let size = [3, 60, 300][round % 3];
        let all: Vec<_> = (0..size).map(|uid| any_workload(&mut rng, uid, &service)).collect();
        let sources: Vec<_> = (0..4).map(|uid| any_workload(&mut rng, 9000 + uid, &service)).collect();
        let mut state = snapshot(&all, std::slice::from_ref(&service));
        check(&state, &service, &sources);
        for _ in 0..6 {
            // The older snapshot is still there, as connections have it.
            let older = state.clone();
            let mut batch = Batch::default();
            for _ in 0..rng.usize(1..4) {
                let uid = rng.usize(0..size + 2);
                if rng.bool() {
                    batch.upsert_workloads.push(any_workload(&mut rng, uid, &service));
                } else {
                    batch.remove_addresses.push(format!("c//Pod/ns/{uid:04}"));
                }
            }
            if rng.u8(0..4) == 0 {
                any_balancer(&mut rng, &mut service);
                batch.upsert_services.push(service.clone());
            }
            state.apply(batch);
            check(&state, &service, &sources);
            check(&older, &service, &sources);
        }
    }
}

#[test]
fn a_change_rebuilds_the_table_of_one_chunk() {
    let web = balanced(service("web", "10.96.0.1"), LbMode::Failover, &[Network, Region, Zone]);
    let mut rng = fastrand::Rng::with_seed(5);
    let all: Vec<_> =
        (0..2000).map(|uid| serving(placed(&format!("{uid:04}"), "r1", "z1", "n1"), &web)).collect();
    let mut state = snapshot(&all, std::slice::from_ref(&web));
    let client = placed("client", "r1", "z1", "n1");
    let service_port = ServicePort::new(&web, 80, PortRule::Standard);
    let query = EndpointQuery { origin: QueryOrigin::Client(&client), service_port: &service_port };
    choose(state.services.endpoints(&service_port.key).unwrap(), &query, |_| false, &mut rng).unwrap();
    let chunks = |state: &Snapshot| {
        state.services.endpoints(&web.key()).unwrap().with_table(&query, table::SetTable::chunks)
    };
    let before = chunks(&state);
    state.apply(Batch { upsert_workloads: vec![unhealthy(all[700].clone())], ..Batch::default() });
    let after = chunks(&state);
    let shared = after.iter().filter(|table| before.iter().any(|old| Arc::ptr_eq(old, table))).count();
    assert!(before.len() > 30 && shared == before.len() - 1, "{shared} of {}", before.len());
}

#[test]
fn avoided_endpoints_are_skipped_down_to_the_next_rank() {
    let web = balanced(service("web", "10.96.0.1"), LbMode::Failover, &[Region, Zone]);
    let near: Vec<_> =
        (0..100).map(|n| serving(placed(&format!("near-{n}"), "r1", "z1", ""), &web)).collect();
    let far: Vec<_> = (0..100).map(|n| serving(placed(&format!("far-{n}"), "r1", "z2", ""), &web)).collect();
    let state = snapshot(&[near, far].concat(), std::slice::from_ref(&web));
    let client = placed("client", "r1", "z1", "");
    let service_port = ServicePort::new(&web, 80, PortRule::Standard);
    let query = EndpointQuery { origin: QueryOrigin::Client(&client), service_port: &service_port };
    let mut rng = rng();
    let set = state.services.endpoints(&service_port.key).unwrap();
    let mut names = |avoid: &dyn Fn(&str) -> bool| {
        let chosen = (0..2000).map(|_| choose(set, &query, |one| avoid(one.name.as_str()), &mut rng));
        let mut names = BTreeMap::new();
        for picked in chosen {
            let picked = match picked {
                Ok(picked) => picked,
                Err(why) => return Err(why),
            };
            assert_eq!(picked.of, 200);
            *names.entry(picked.workload.name.to_string()).or_insert(0_u32) += 1;
        }
        Ok(names)
    };
    // All of the near ones but one; all of them; all.
    assert_eq!(names(&|name| name.starts_with("near") && name != "near-7").unwrap()["near-7"], 2000);
    let far = names(&|name| name.starts_with("near")).unwrap();
    assert!(far.len() == 100 && far.values().all(|count| count.abs_diff(20) < 20), "{far:?}");
    assert_eq!(names(&|_| true).unwrap_err(), NoEndpoint::AllAvoided);
    // Half of them: the others share.
    let half = names(&|name| name.ends_with(['0', '2', '4', '6', '8'])).unwrap();
    assert!(half.len() == 50 && half.keys().all(|name| name.starts_with("near")), "{half:?}");
}

#[test]
fn no_endpoints_and_all_avoided_are_different_errors() {
    let web = service("web", "10.96.0.1");
    let client = pod("client", "10.0.0.9");
    let service_port = ServicePort::new(&web, 80, PortRule::Standard);
    let query = EndpointQuery { origin: QueryOrigin::Client(&client), service_port: &service_port };
    for workloads in [vec![], vec![unhealthy(serving(pod("a", "10.0.0.1"), &web))]] {
        let state = snapshot(&workloads, std::slice::from_ref(&web));
        let set = state.services.endpoints(&service_port.key).cloned().unwrap_or_default();
        assert_eq!(choose(&set, &query, |_| true, &mut rng()).unwrap_err(), NoEndpoint::NoneQualify);
    }
}
