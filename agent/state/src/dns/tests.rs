use super::*;
use crate::fixture::{NETWORK, at, balanced, pod, service, serving, snapshot, split_horizon, unhealthy};
use isthmus_model::service::{HealthPolicy, LbMode, NetworkCidr};
use isthmus_model::{IpFamilies, Visibility};

fn ask(snapshot: &Snapshot, client: &Workload, name: &str, family: Family) -> String {
    match lookup(snapshot, client, name, family, &Domains::default()) {
        Answer::Addresses(found) => {
            let addresses: Vec<_> = found.addresses.iter().map(ToString::to_string).collect();
            let canonical = found.canonical.map(|name| format!(" as {name}")).unwrap_or_default();
            format!("{}{canonical}", addresses.join(" "))
        }
        Answer::Empty => "empty".to_owned(),
        Answer::NotOurs => "not ours".to_owned(),
    }
}

fn in_namespace(mut workload: Workload, namespace: &str) -> Workload {
    workload.namespace = namespace.into();
    workload
}

fn external(hostname: &str, vip: &str) -> Service {
    let mut service = service("external", vip);
    service.hostname = hostname.into();
    service
}

#[test]
fn a_service_is_found_by_all_its_names() {
    let state = snapshot(&[], &[service("web", "10.96.0.1")]);
    let (near, far) = (pod("a", "10.0.0.1"), in_namespace(pod("b", "10.0.0.2"), "other"));
    for (name, for_near, for_far) in [
        ("web", "10.96.0.1", "not ours"),
        ("web.ns", "10.96.0.1", "10.96.0.1"),
        ("web.ns.svc", "10.96.0.1", "10.96.0.1"),
        ("web.ns.svc.cluster.local", "10.96.0.1", "10.96.0.1"),
        ("WEB.Ns.svc.CLUSTER.local", "10.96.0.1", "10.96.0.1"),
        ("web.ns.svc.cluster", "not ours", "not ours"),
        // What a resolver asks while it walks its search list.
        ("web.ns.ns.svc.cluster.local", "10.96.0.1 as web.ns", "not ours"),
        ("web.ns.other.svc.cluster.local", "not ours", "10.96.0.1 as web.ns"),
        (
            "web.ns.svc.cluster.local.ns.svc.cluster.local",
            "10.96.0.1 as web.ns.svc.cluster.local",
            "not ours",
        ),
        ("web.ns.svc.svc.cluster.local", "10.96.0.1 as web.ns.svc", "10.96.0.1 as web.ns.svc"),
        (
            "web.ns.svc.cluster.local.cluster.local",
            "10.96.0.1 as web.ns.svc.cluster.local",
            "10.96.0.1 as web.ns.svc.cluster.local",
        ),
        ("other.ns", "not ours", "not ours"),
        ("x.web.ns.svc.cluster.local", "not ours", "not ours"),
        ("example.com", "not ours", "not ours"),
        ("ns.svc.cluster.local", "not ours", "not ours"),
        ("cluster.local", "not ours", "not ours"),
        ("", "not ours", "not ours"),
        (".", "not ours", "not ours"),
    ] {
        assert_eq!(ask(&state, &near, name, Family::V4), for_near, "{name}");
        assert_eq!(ask(&state, &far, name, Family::V4), for_far, "{name} from another namespace");
    }
}

#[test]
fn completions_depend_on_the_number_of_labels() {
    let complete = |name: &str| completions(name, &"ns".into(), "cluster.local");
    assert_eq!(complete("a"), ["a.ns.svc.cluster.local"]);
    assert_eq!(complete("a.b"), ["a.b.svc.cluster.local", "a.b.ns.svc.cluster.local"]);
    assert_eq!(complete("a.b.svc"), ["a.b.svc.cluster.local", "a.b.svc.svc.cluster.local"]);
    assert_eq!(complete("a.b.c"), ["a.b.c.svc.cluster.local"]);
    assert_eq!(complete("a.b.c.svc"), ["a.b.c.svc.cluster.local"]);
    assert!(complete("a.b.c.d").is_empty());
    assert!(complete("a.b.c.d.e").is_empty());
}

#[test]
fn a_name_without_an_address_of_the_family_is_empty() {
    let mut dual = service("dual", "10.96.0.1");
    dual.vips.push(at(NETWORK, "fd96::1"));
    let mut only_v4 = dual.clone();
    only_v4.hostname = "only.ns.svc.cluster.local".into();
    only_v4.ip_families = Some(IpFamilies::Ipv4);
    let state = snapshot(&[], &[dual, only_v4]);
    let client = pod("a", "10.0.0.1");
    for (name, family, want) in [
        ("dual", Family::V4, "10.96.0.1"),
        ("dual", Family::V6, "fd96::1"),
        ("only", Family::V4, "10.96.0.1"),
        ("only", Family::V6, "empty"),
    ] {
        assert_eq!(ask(&state, &client, name, family), want, "{name} {family:?}");
    }
}

#[test]
fn addresses_of_another_network_are_hidden() {
    let mut web = service("web", "10.96.0.1");
    web.vips.push(at("west", "10.97.0.1"));
    let mut far = service("far", "");
    far.vips.push(at("west", "10.97.0.2"));
    let state = snapshot(&[], &[web, far]);
    let client = pod("a", "10.0.0.1");
    assert_eq!(ask(&state, &client, "web", Family::V4), "10.96.0.1");
    assert_eq!(ask(&state, &client, "far", Family::V4), "empty");
    let mut remote = client;
    remote.network = "west".into();
    assert_eq!(ask(&state, &remote, "web", Family::V4), "10.97.0.1");
}

#[test]
fn a_headless_service_is_its_healthy_endpoints_of_this_network() {
    let headless = service("db", "");
    let mut dual = serving(pod("b", "10.0.0.2"), &headless);
    dual.addresses.insert(0, "fd00::2".parse().unwrap());
    let mut workloads = vec![
        serving(pod("a", "10.0.0.1"), &headless),
        dual,
        unhealthy(serving(pod("c", "10.0.0.3"), &headless)),
        split_horizon(&headless, "192.168.0.1"),
    ];
    let mut far = serving(pod("d", "10.0.0.4"), &headless);
    far.network = "west".into();
    workloads.push(far);
    let client = pod("client", "10.0.0.9");
    let state = snapshot(&workloads, std::slice::from_ref(&headless));
    assert_eq!(ask(&state, &client, "db", Family::V4), "10.0.0.1 10.0.0.2");
    assert_eq!(ask(&state, &client, "db", Family::V6), "fd00::2");
    let mut all = balanced(headless.clone(), LbMode::Standard, &[]);
    if let Some(balancer) = &mut all.load_balancer {
        balancer.health_policy = HealthPolicy::AllowAll;
    }
    assert_eq!(ask(&snapshot(&workloads, &[all]), &client, "db", Family::V4), "10.0.0.1 10.0.0.2 10.0.0.3");
    assert_eq!(ask(&snapshot(&[], &[headless]), &client, "db", Family::V4), "empty");
}

#[test]
fn an_external_service_without_an_address_is_not_ours() {
    let none = external("api.example.com", "");
    let mut range = external("range.example.com", "");
    range.cidr_vips = vec![NetworkCidr { network: NETWORK.into(), cidr: "10.9.0.0/16".parse().unwrap() }];
    let workload = serving(pod("a", "10.0.0.1"), &none);
    // A domain that merely ends like the cluster's is another one.
    let lookalike = external("a.b.notsvc.cluster.local", "");
    let state = snapshot(&[workload], &[none, range, lookalike, external("web.example.com", "240.240.0.1")]);
    let client = pod("client", "10.0.0.9");
    assert_eq!(ask(&state, &client, "api.example.com", Family::V4), "not ours");
    assert_eq!(ask(&state, &client, "range.example.com", Family::V4), "not ours");
    assert_eq!(ask(&state, &client, "a.b.notsvc.cluster.local", Family::V4), "not ours");
    assert_eq!(ask(&state, &client, "web.example.com", Family::V4), "240.240.0.1");
    let searched = "web.example.com.ns.svc.cluster.local";
    assert_eq!(ask(&state, &client, searched, Family::V4), "240.240.0.1 as web.example.com");
}

#[test]
fn the_closest_wildcard_answers_and_has_no_canonical_name() {
    let services = [
        external("*.example.com", "240.240.0.1"),
        external("*.deep.example.com", "240.240.0.2"),
        external("exact.example.com", "240.240.0.3"),
    ];
    let state = snapshot(&[], &services);
    let client = pod("client", "10.0.0.9");
    for (name, want) in [
        ("a.example.com", "240.240.0.1"),
        ("a.b.example.com", "240.240.0.1"),
        ("a.deep.example.com", "240.240.0.2"),
        ("exact.example.com", "240.240.0.3"),
        ("x.exact.example.com", "240.240.0.1"),
        ("a.example.com.ns.svc.cluster.local", "240.240.0.1"),
        ("example.com", "not ours"),
    ] {
        assert_eq!(ask(&state, &client, name, Family::V4), want, "{name}");
    }
}

#[test]
fn the_clients_own_then_canonical_then_preferred_service_wins_a_name() {
    let named = |namespace: &str, vip: &str, canonical, visibility| {
        let mut service = external("web.example.com", vip);
        service.namespace = namespace.into();
        service.canonical = canonical;
        service.visibility = visibility;
        service
    };
    let state = snapshot(
        &[],
        &[
            named("a", "240.240.0.1", false, Visibility::Public),
            named("b", "240.240.0.2", false, Visibility::Public),
            named("hidden", "240.240.0.3", true, Visibility::Namespace),
        ],
    );
    let from = |namespace: &str, preferred: Option<&str>| {
        let domains = Domains { preferred_namespace: preferred.map(Namespace::from), ..Domains::default() };
        let client = in_namespace(pod("c", "10.0.0.9"), namespace);
        match lookup(&state, &client, "web.example.com", Family::V4, &domains) {
            Answer::Addresses(found) => found.service.namespace.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(from("x", None), "a");
    assert_eq!(from("b", None), "b");
    assert_eq!(from("x", Some("b")), "b");
    assert_eq!(from("a", Some("b")), "a");
    assert_eq!(from("hidden", None), "hidden");
}

#[test]
fn another_cluster_domain_may_be_configured() {
    let mut web = service("web", "10.96.0.1");
    web.hostname = "web.ns.svc.example.org".into();
    let domains = Domains { cluster: "example.org".into(), preferred_namespace: None };
    let state = snapshot(&[], &[web]);
    let client = pod("a", "10.0.0.1");
    for name in
        ["web", "web.ns", "web.ns.svc", "web.ns.svc.example.org", "web.ns.svc.example.org.example.org"]
    {
        let answer = lookup(&state, &client, name, Family::V4, &domains);
        assert!(matches!(answer, Answer::Addresses(_)), "{name}: {answer:?}");
    }
}
