use super::*;
use crate::fixture::{at, by_name, network_gateway, pod, service, serving, snapshot, unhealthy};
use isthmus_model::service::NetworkCidr;
use isthmus_model::{Action, Hostname, Namespace, NetworkMode, Scope, Visibility};

fn upsert(workloads: Vec<Workload>, services: Vec<Service>) -> Batch {
    Batch { upsert_workloads: workloads, upsert_services: services, ..Batch::default() }
}

fn policies(upsert_policies: Vec<(PolicyKey, Policy)>) -> Batch {
    Batch { upsert_policies, ..Batch::default() }
}

fn remove(names: &[&str]) -> Batch {
    Batch { remove_addresses: names.iter().map(ToString::to_string).collect(), ..Batch::default() }
}

fn uids(snapshot: &Snapshot, service: &Service) -> Vec<String> {
    let key = service.key();
    snapshot.endpoints(&key).map(|endpoint| endpoint.uid().to_string()).collect()
}

fn policy(name: &str, namespace: &str, scope: Scope) -> (PolicyKey, Policy) {
    let policy = Policy {
        name: name.into(),
        namespace: namespace.into(),
        scope,
        action: Action::Deny,
        rules: vec![],
        dry_run: false,
    };
    (policy.key(), policy)
}

#[test]
fn endpoints_may_arrive_before_their_service_and_outlive_it() {
    let web = service("web", "10.96.0.1");
    let mut state = snapshot(&[serving(pod("a", "10.0.0.1"), &web)], &[]);
    assert_eq!(state.staged().collect::<Vec<_>>(), [&web.key()]);
    let staged = state.apply(upsert(vec![], vec![web.clone()]));
    assert_eq!((staged.services, staged.workloads), (1, 0));
    assert_eq!(state.staged().count(), 0);
    assert_eq!(uids(&state, &web), ["c//Pod/ns/a"]);
    state.apply(remove(&["ns/web.ns.svc.cluster.local"]));
    assert!(state.service(&web.key()).is_none());
    assert!(state.service_by_vip(&at("east", "10.96.0.1"), None).is_none());
    assert!(state.service_by_hostname(&web.hostname, 80, None).is_none());
    state.apply(upsert(vec![], vec![web.clone()]));
    assert_eq!(uids(&state, &web), ["c//Pod/ns/a"], "endpoints are kept for the service's return");
}

#[test]
fn an_update_of_a_workload_moves_it_in_every_index() {
    let (web, api) = (service("web", "10.96.0.1"), service("api", "10.96.0.2"));
    let mut first = serving(pod("a", "10.0.0.1"), &web);
    first.hostname = "a.example.com".into();
    let mut state = snapshot(&[first, serving(pod("b", "10.0.0.2"), &web)], &[web.clone(), api.clone()]);
    let mut moved = serving(pod("a", "10.0.0.9"), &api);
    moved.node = "node-2".into();
    moved.service_account = "other".into();
    let applied = state.apply(upsert(vec![moved.clone()], vec![]));
    assert_eq!((applied.workloads, applied.own_node), (1, true));
    assert!(state.workload_by_addr(&at("east", "10.0.0.1")).is_none());
    assert_eq!(state.workload_by_addr(&at("east", "10.0.0.9")).unwrap().uid, moved.uid);
    assert_eq!(uids(&state, &web), ["c//Pod/ns/b"]);
    assert_eq!(uids(&state, &api), ["c//Pod/ns/a"]);
    assert_eq!(state.on_node(&"node-1".into()).count(), 1);
    assert_eq!(state.on_node(&"node-2".into()).count(), 1);
    assert!(
        state
            .workload_by_hostname(&NamespacedHostname {
                namespace: "ns".into(),
                hostname: "a.example.com".into()
            })
            .is_none()
    );
    let key = |account: &str| isthmus_model::PodRef {
        uid: "u".into(),
        name: "a".into(),
        namespace: "ns".into(),
        service_account: account.into(),
    };
    assert!(state.local_workload(&key("sa")).is_none());
    assert!(state.local_workload(&key("other")).is_none(), "a pod of another node");
    moved.node = "node-1".into();
    state.apply(upsert(vec![moved], vec![]));
    assert!(state.local_workload(&key("other")).is_some());
}

#[test]
fn removal_is_by_uid_or_by_service_name_and_nothing_else() {
    let web = service("web", "10.96.0.1");
    let mut state = snapshot(&[serving(pod("a", "10.0.0.1"), &web)], std::slice::from_ref(&web));
    for name in ["c//Pod/ns/other", "ns/web.ns.svc.cluster.local/x", "web.ns.svc.cluster.local", "ns/", ""] {
        assert!(!state.apply(remove(&[name])).is_change(), "{name:?}");
    }
    let gone = state.apply(remove(&["c//Pod/ns/a", "ns/web.ns.svc.cluster.local"]));
    assert_eq!((gone.workloads, gone.services), (1, 1));
    assert_eq!(state.workload_count(), 0);
    assert_eq!(state.services().count(), 0);
    assert_eq!(state.on_node(&"node-1".into()).count(), 0);
    assert!(state.staged().next().is_none());
    let (mut nowhere, mut odd) = (service("nowhere", ""), service("odd", ""));
    nowhere.namespace = "".into();
    odd.hostname = "odd/er.example.com".into();
    let names = [nowhere.key().to_string(), odd.key().to_string()];
    state.apply(upsert(vec![], vec![nowhere, odd]));
    assert_eq!(state.apply(remove(&[&names[0], &names[1]])).services, 2, "what can be added can be removed");
}

#[test]
fn a_repeated_push_changes_nothing() {
    let web = service("web", "10.96.0.1");
    let push = || {
        let mut push = upsert(vec![serving(pod("a", "10.0.0.1"), &web)], vec![web.clone()]);
        push.upsert_policies.push(policy("p", "ns", Scope::Global));
        push
    };
    let mut state = snapshot(&[], &[]);
    assert!(state.apply(push()).is_change());
    let version = state.version();
    assert_eq!(state.apply(push()), Applied { version, ..Applied::default() });
}

#[test]
fn removals_are_applied_after_upserts_of_the_same_push() {
    let mut state = snapshot(&[], &[]);
    let mut push = upsert(vec![pod("a", "10.0.0.1")], vec![]);
    push.remove_addresses.push("c//Pod/ns/a".into());
    push.upsert_policies.push(policy("p", "ns", Scope::Global));
    push.remove_policies.push("ns/p".into());
    state.apply(push);
    assert_eq!((state.workload_count(), state.policies().count()), (0, 0));
}

#[test]
fn an_older_snapshot_does_not_change() {
    let web = service("web", "10.96.0.1");
    let mut state = snapshot(&[serving(pod("a", "10.0.0.1"), &web)], std::slice::from_ref(&web));
    let old = state.clone();
    let mut changed = web.clone();
    changed.vips = vec![at("east", "10.96.0.7")];
    state.apply(upsert(vec![serving(pod("b", "10.0.0.2"), &web)], vec![changed]));
    state.apply(remove(&["c//Pod/ns/a"]));
    assert_eq!(uids(&old, &web), ["c//Pod/ns/a"]);
    assert_eq!(uids(&state, &web), ["c//Pod/ns/b"]);
    assert!(old.service_by_vip(&at("east", "10.96.0.1"), None).is_some());
    assert!(old.workload_by_addr(&at("east", "10.0.0.2")).is_none());
    assert!(state.service_by_vip(&at("east", "10.96.0.1"), None).is_none());
    assert!(state.service_by_vip(&at("east", "10.96.0.7"), None).is_some());
}

#[test]
fn of_several_workloads_at_one_address_a_pod_in_the_mesh_wins() {
    use isthmus_model::Protocol::{Hbone, Tcp};
    let make = |uid: &str, protocol| {
        let mut workload = pod("x", "10.0.0.1");
        workload.uid = uid.into();
        workload.protocol = protocol;
        workload
    };
    // In order of arrival, and the workload that is found.
    let cases: [(&[(&str, isthmus_model::Protocol)], &str); 5] = [
        (&[("c//Pod/ns/a", Hbone), ("c//Pod/ns/b", Tcp), ("entry", Hbone)], "c//Pod/ns/a"),
        (&[("entry", Hbone), ("c//Pod/ns/b", Tcp)], "c//Pod/ns/b"),
        (&[("entry-a", Hbone), ("entry-b", Tcp)], "entry-a"),
        (&[("entry-a", Tcp), ("entry-b", Tcp)], "entry-b"),
        (&[("c//Pod/ns/a", Hbone), ("c//Pod/ns/b", Hbone)], "c//Pod/ns/b"),
    ];
    for (arrived, want) in cases {
        let workloads: Vec<_> = arrived.iter().map(|(uid, protocol)| make(uid, *protocol)).collect();
        let state = snapshot(&workloads, &[]);
        assert_eq!(state.workload_by_addr(&at("east", "10.0.0.1")).unwrap().uid.as_str(), want);
        assert!(state.workload_by_addr(&at("west", "10.0.0.1")).is_none());
    }
}

#[test]
fn a_host_network_pod_is_never_found_by_address() {
    let mut host = pod("a", "192.168.0.1");
    host.network_mode = NetworkMode::HostNetwork;
    let state = snapshot(&[host, network_gateway("192.168.0.2")], &[]);
    assert!(state.workload_by_addr(&at("east", "192.168.0.1")).is_none());
    assert!(state.workload_by_addr(&at("west", "192.168.0.2")).is_some());
}

#[test]
fn the_own_clusters_pod_wins_a_pod_name() {
    let mut other = pod("a", "10.0.0.2");
    other.uid = "other//Pod/ns/a".into();
    other.cluster_id = "other".into();
    let key = isthmus_model::PodRef {
        uid: "u".into(),
        name: "a".into(),
        namespace: "ns".into(),
        service_account: "sa".into(),
    };
    for order in [[pod("a", "10.0.0.1"), other.clone()], [other.clone(), pod("a", "10.0.0.1")]] {
        let state = snapshot(&order, &[]);
        assert_eq!(state.local_workload(&key).unwrap().cluster_id.as_str(), "c");
    }
    assert!(snapshot(&[other], &[]).local_workload(&key).is_some(), "better another's than none");
}

/// A service of some namespace at 10.96.0.1, and what else is said of it.
fn rival(namespace: &str, canonical: bool, visibility: Visibility) -> Service {
    let mut rival = service("web", "10.96.0.1");
    rival.namespace = namespace.into();
    rival.hostname = "web.example.com".into();
    rival.canonical = canonical;
    rival.visibility = visibility;
    rival
}

#[test]
fn the_clients_own_service_wins_then_the_canonical_then_the_first() {
    use Visibility::{Namespace as Hidden, Public};
    type Case<'a> = (&'a [(&'a str, bool, Visibility)], Option<&'a str>, Option<&'a str>);
    let cases: [Case<'_>; 8] = [
        (&[("a", false, Public), ("b", true, Public), ("c", false, Public)], Some("c"), Some("c")),
        (&[("a", false, Public), ("b", true, Public), ("c", false, Public)], Some("x"), Some("b")),
        (&[("a", false, Public), ("b", false, Public)], Some("x"), Some("a")),
        (&[("a", false, Public), ("b", false, Public)], None, Some("a")),
        (&[("a", true, Hidden), ("b", false, Public)], Some("x"), Some("b")),
        (&[("a", true, Hidden)], Some("a"), Some("a")),
        (&[("a", true, Hidden)], Some("x"), None),
        (&[("a", true, Hidden)], None, Some("a")),
    ];
    for (services, client, want) in cases {
        let services: Vec<_> =
            services.iter().map(|(ns, canonical, seen)| rival(ns, *canonical, *seen)).collect();
        let state = snapshot(&[], &services);
        let client = client.map(Namespace::from);
        let want = want.map(Namespace::from);
        let by_vip = state.service_by_vip(&at("east", "10.96.0.1"), client.as_ref());
        assert_eq!(by_vip.map(|found| found.namespace.clone()), want);
        let by_name = state.service_by_hostname(&Hostname::from("web.example.com"), 80, client.as_ref());
        assert_eq!(by_name.map(|found| found.namespace.clone()), want);
    }
}

#[test]
fn an_update_of_a_service_does_not_change_which_of_several_wins() {
    let mut state =
        snapshot(&[], &[rival("a", false, Visibility::Public), rival("b", false, Visibility::Public)]);
    let mut changed = rival("a", false, Visibility::Public);
    changed.waypoint = Some(by_name("a/waypoint"));
    state.apply(upsert(vec![], vec![changed]));
    let found = state.service_by_vip(&at("east", "10.96.0.1"), None).unwrap();
    assert_eq!((found.namespace.as_str(), found.waypoint.is_some()), ("a", true));
}

#[test]
fn ranges_are_found_by_namespace_then_length_and_after_exact_addresses() {
    let range = |name: &str, namespace: &str, cidrs: &[&str]| {
        let mut service = service(name, "");
        service.namespace = namespace.into();
        let network = || "east".into();
        service.cidr_vips = cidrs
            .iter()
            .map(|cidr| NetworkCidr { network: network(), cidr: cidr.parse().unwrap() })
            .collect();
        service
    };
    let services = [
        range("wide", "mine", &["10.0.0.0/8"]),
        range("narrow", "b", &["10.1.0.0/16", "fd00::/8"]),
        range("same", "c", &["10.1.0.0/16"]),
        service("exact", "10.1.2.3"),
    ];
    let mut state = snapshot(&[], &services);
    let found = |state: &Snapshot, address: &str, client: &str| {
        let client = Namespace::from(client);
        state.service_by_vip(&at("east", address), Some(&client)).map(|found| found.name.to_string())
    };
    let cases = [
        ("10.9.9.9", "x", Some("wide")),
        ("10.1.9.9", "x", Some("narrow")),
        ("10.1.9.9", "mine", Some("wide")),
        ("10.1.9.9", "c", Some("same")),
        ("10.1.2.3", "mine", Some("exact")),
        ("11.0.0.1", "x", None),
        ("fd00::1", "x", Some("narrow")),
        ("fe00::1", "x", None),
    ];
    for (address, client, want) in cases {
        assert_eq!(found(&state, address, client).as_deref(), want, "{address} for {client}");
    }
    assert!(state.service_by_vip(&at("west", "10.9.9.9"), None).is_none());
    // Endpoints and updates leave one copy of each range, and removal none.
    let mut changed = services[1].clone();
    changed.canonical = true;
    state.apply(upsert(vec![serving(pod("a", "10.0.0.1"), &changed)], vec![changed]));
    assert_eq!(found(&state, "10.1.9.9", "x").as_deref(), Some("narrow"));
    state.apply(remove(&["b/narrow.ns.svc.cluster.local"]));
    assert_eq!(found(&state, "10.1.9.9", "x").as_deref(), Some("same"));
    assert_eq!(found(&state, "fd00::1", "x"), None);
}

#[test]
fn policies_are_found_by_scope_and_by_name() {
    let mut state = snapshot(&[], &[]);
    let keys = |state: &Snapshot, workload: &Workload| {
        state
            .policies_for(workload)
            .map(|one| format!("{} {}", one.key, one.policy.is_some()))
            .collect::<Vec<_>>()
    };
    let push = policies(vec![
        policy("global", "istio-system", Scope::Global),
        policy("here", "ns", Scope::Namespace),
        policy("elsewhere", "other", Scope::Namespace),
        policy("named", "ns", Scope::WorkloadSelector),
        policy("unnamed", "ns", Scope::WorkloadSelector),
    ]);
    assert_eq!(state.apply(push).policies, 5);
    let mut workload = pod("a", "10.0.0.1");
    workload.authorization_policies = vec!["ns/named".into(), "ns/missing".into()];
    let all = ["ns/here true", "istio-system/global true", "ns/named true", "ns/missing false"];
    assert_eq!(keys(&state, &workload), all);
    // A policy that changes its scope leaves the old one.
    let mut push = policies(vec![policy("here", "ns", Scope::WorkloadSelector)]);
    push.remove_policies = vec!["istio-system/global".into(), "no/such".into()];
    assert_eq!(state.apply(push).policies, 2);
    assert_eq!(keys(&state, &workload), ["ns/named true", "ns/missing false"]);
}

#[test]
fn changes_on_the_own_node_are_flagged() {
    let mut state = snapshot(&[], &[]);
    let mut elsewhere = pod("b", "10.0.0.2");
    elsewhere.node = "node-2".into();
    assert!(!state.apply(upsert(vec![unhealthy(elsewhere)], vec![])).own_node);
    assert!(!state.apply(upsert(vec![], vec![service("web", "10.96.0.1")])).own_node);
    assert!(state.apply(upsert(vec![pod("a", "10.0.0.1")], vec![])).own_node);
    let gone = Batch { remove_addresses: vec!["c//Pod/ns/a".into()], ..Batch::default() };
    assert!(state.apply(gone).own_node);
}
