//! ServiceEntries and WorkloadEntries in, addresses out.

use isthmus_proto::workload::NetworkMode;
use serde_json::json;

use super::*;
use crate::clusters::{ClusterId, Clusters};
use crate::translate::mesh_config::default_scopes;
use crate::translate::resource;
use crate::translate::view::fixture::{service_of, workload_of};
use crate::translate::view::{self, View};
use playground_k8s::client::Event;

/// One cluster `c` on network `n` with these objects.
fn clusters(objects: &[Value]) -> Clusters {
    let mut clusters = Clusters::default();
    let network = json!({"topology.istio.io/network": "n"});
    let namespace = |name: &str| json!({"kind": "Namespace", "metadata": {"name": name, "labels": network}});
    for object in [namespace("istio-system"), namespace("a")].iter().chain(objects) {
        let kind = playground_k8s::manifest::Kind::named(object::text(object, "/kind")).unwrap().kind;
        clusters.apply(&ClusterId("c".to_owned()), kind, Event::Applied(object.clone()));
    }
    clusters
}

fn view(objects: &[Value]) -> View {
    let mesh = Mesh {
        trust_domain: "cluster.local".to_owned(),
        root_namespace: "istio-system".to_owned(),
        domain: "cluster.local".to_owned(),
        scopes: default_scopes(),
        ..Mesh::default()
    };
    let id = ClusterId("c".to_owned());
    view::all(&mesh, &clusters(objects), &id, "").remove(&id).unwrap()
}

fn names(view: &View) -> Vec<&str> {
    view.addresses.all().keys().map(String::as_str).collect()
}

fn entry(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"name": name, "namespace": "a", "resourceVersion": "7"}, "spec": spec,
    })
}

fn virtual_addresses(service: &Service) -> Vec<String> {
    service.addresses.iter().filter_map(resource::sort_key).collect()
}

fn web() -> Value {
    json!([{"number": 80, "name": "http", "protocol": "HTTP"}, {"number": 53, "name": "dns", "protocol": "UDP"}])
}

#[test]
fn a_static_entry_is_a_service_with_the_endpoints_that_it_names() {
    let endpoints = json!([
        {"address": "192.0.2.1", "ports": {"http": 8080}, "locality": "r/z/s", "weight": 3},
        {"address": "192.0.2.2", "serviceAccount": "ext"},
    ]);
    let spec = json!({
        "hosts": ["one.example", "*.example"], "addresses": ["240.240.0.10", "198.51.100.0/28"], "ports": web(),
        "resolution": "STATIC", "endpoints": endpoints,
    });
    let view = view(&[entry("ext", &spec)]);
    let (first, second) = (
        "c/networking.istio.io/ServiceEntry/a/ext/192.0.2.1",
        "c/networking.istio.io/ServiceEntry/a/ext/192.0.2.2",
    );
    assert_eq!(names(&view), ["a/*.example", "a/one.example", first, second]);
    let service = service_of(&view, "a/one.example");
    assert_eq!((service.name.as_str(), service.canonical), ("ext", true));
    assert_eq!(service.load_balancing, None);
    assert_eq!(virtual_addresses(&service), ["n/240.240.0.10", "n/198.51.100.0"]);
    assert_eq!((service.addresses[0].length, service.addresses[1].length), (None, Some(28)));
    assert_eq!(service.ports.len(), 1);
    assert_eq!((service.ports[0].service_port, service.ports[0].target_port), (80, 80));
    let made = workload_of(&view, first);
    assert_eq!((made.capacity, made.network.as_str(), made.addresses.len()), (Some(3), "n", 1));
    assert_eq!(made.locality.unwrap().subzone, "s");
    assert_eq!(made.services["a/one.example"].ports[0].target_port, 8080);
    assert_eq!(made.services.len(), 2);
    let made = workload_of(&view, second);
    assert_eq!(made.services["a/*.example"].ports[0].target_port, 80);
    assert_eq!((made.service_account.as_str(), made.network_mode()), ("ext", NetworkMode::Standard));
}

#[test]
fn an_entry_that_dns_resolves_has_an_endpoint_for_each_host() {
    let spec = json!({"hosts": ["x.example", "y.example"], "ports": web(), "resolution": "DNS"});
    let view = view(&[entry("dns", &spec)]);
    let made = workload_of(&view, "c/networking.istio.io/ServiceEntry/a/dns/x.example");
    assert_eq!((made.hostname.as_str(), made.addresses.len()), ("x.example", 0));
    assert_eq!(made.services.keys().collect::<Vec<_>>(), ["a/x.example"]);
    assert_eq!(names(&view).len(), 4);
}

#[test]
fn an_entry_without_resolution_lets_everything_through() {
    let spec = json!({"hosts": ["any.example"], "addresses": ["198.51.100.0/24"], "ports": web()});
    let view = view(&[entry("none", &spec)]);
    assert_eq!(names(&view), ["a/any.example"]);
    let balancing = service_of(&view, "a/any.example").load_balancing.unwrap();
    assert_eq!((balancing.mode(), balancing.health_policy()), (Mode::Passthrough, HealthPolicy::AllowAll));
}

fn pod(labels: &Value) -> Value {
    json!({
        "kind": "Pod", "metadata": {"name": "p", "namespace": "a", "labels": labels},
        "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"podIP": "10.0.0.1"},
    })
}

#[test]
fn a_selector_chooses_pods_and_workload_entries() {
    let labels = json!({"app": "vm"});
    let spec = json!({
        "hosts": ["vm.example"], "ports": web(), "resolution": "STATIC", "workloadSelector": {"labels": labels},
    });
    let vm = json!({
        "kind": "WorkloadEntry", "metadata": {"name": "vm", "namespace": "a"},
        "spec": {"address": "vm.internal", "labels": labels, "ports": {"http": 81, "web": 82}, "serviceAccount": "vm"},
    });
    let service = json!({
        "kind": "Service", "metadata": {"name": "s", "namespace": "a"},
        "spec": {"selector": labels, "ports": [{"name": "x", "port": 5, "targetPort": "web"}]},
    });
    let view = view(&[entry("vm", &spec), pod(&labels), vm, service]);
    let made = workload_of(&view, "c/networking.istio.io/WorkloadEntry/a/vm");
    assert_eq!((made.hostname.as_str(), made.service_account.as_str()), ("vm.internal", "vm"));
    assert_eq!(made.services["a/vm.example"].ports[0].target_port, 81);
    assert_eq!(made.services["a/s.a.svc.cluster.local"].ports[0].target_port, 82);
    let made = workload_of(&view, "c//Pod/a/p");
    // Of the same name as the entry's port; the service's target port has no name at this pod.
    assert_eq!(made.services["a/vm.example"].ports[0].target_port, 8080);
    assert!(made.services["a/s.a.svc.cluster.local"].ports.is_empty());
}

#[test]
fn a_policy_chooses_a_workload_entry_by_its_labels() {
    let vm = json!({
        "kind": "WorkloadEntry", "metadata": {"name": "vm", "namespace": "a"},
        "spec": {"address": "192.0.2.7", "labels": {"app": "vm"}},
    });
    let policy = json!({
        "kind": "AuthorizationPolicy", "metadata": {"name": "p", "namespace": "a"},
        "spec": {"selector": {"matchLabels": {"app": "vm"}}},
    });
    let made = workload_of(&view(&[vm, policy]), "c/networking.istio.io/WorkloadEntry/a/vm");
    assert_eq!(made.authorization_policies, ["a/p"]);
}

#[test]
fn a_service_of_kubernetes_owns_its_name() {
    let host = "s.a.svc.cluster.local";
    let endpoints = json!([{"address": "192.0.2.1"}]);
    let spec = json!({"hosts": [host], "ports": web(), "resolution": "STATIC", "endpoints": endpoints});
    let mut elsewhere = entry("copy", &spec);
    elsewhere["metadata"]["namespace"] = "b".into();
    let service = json!({
        "kind": "Service", "metadata": {"name": "s", "namespace": "a"},
        "spec": {"clusterIPs": ["172.16.0.9"], "ports": [{"port": 5}]},
    });
    let view = view(&[entry("copy", &spec), elsewhere, service]);
    let winner = service_of(&view, &format!("a/{host}"));
    assert_eq!((winner.name.as_str(), winner.canonical), ("s", true));
    assert!(!service_of(&view, &format!("b/{host}")).canonical);
    let beaten = workload_of(&view, "c/networking.istio.io/ServiceEntry/a/copy/192.0.2.1");
    assert!(beaten.services.is_empty());
}

fn allocated(objects: &[Value]) -> Vec<vips::Allocation> {
    vips::allocate(clusters(objects).cluster(&ClusterId("c".to_owned())).unwrap())
}

#[test]
fn hosts_without_addresses_get_some_of_the_pool() {
    let spec = json!({"hosts": ["x.example", "*.y.example"], "ports": web(), "resolution": "STATIC"});
    let all = allocated(&[entry("e", &spec)]);
    let [one] = &all[..] else { panic!("{all:?}") };
    assert_eq!((one.name.as_str(), one.resource_version.as_str()), ("e", "7"));
    assert_eq!(one.addresses[0]["host"], "x.example");
    assert!(
        object::text(&one.addresses, "/0/value").starts_with("240.240.") && one.addresses.get(1).is_none()
    );
    // Once it is written, nothing changes, and it is the service's address.
    let mut written = entry("e", &spec);
    written["status"]["addresses"] = one.addresses.clone();
    assert_eq!(allocated(std::slice::from_ref(&written)), []);
    let service = service_of(&view(&[written]), "a/x.example");
    assert_eq!(virtual_addresses(&service), [format!("n/{}", object::text(&one.addresses, "/0/value"))]);
}

#[test]
fn an_address_is_given_once() {
    let spec = |address: Option<&str>| {
        let hosts = json!({"hosts": ["x.example"], "ports": web(), "resolution": "STATIC"});
        let mut spec = hosts;
        spec["addresses"] = json!(address.into_iter().collect::<Vec<_>>());
        spec
    };
    let status = json!({"addresses": [{"value": "240.240.0.10", "host": "x.example"}]});
    let mut older = entry("older", &spec(None));
    older["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
    let mut younger = entry("a-younger", &spec(None));
    younger["metadata"]["creationTimestamp"] = "2026-01-02T00:00:00Z".into();
    for entry in [&mut older, &mut younger] {
        entry["status"] = status.clone();
    }
    let moved = allocated(&[older.clone(), younger]);
    assert_eq!((moved.len(), moved[0].name.as_str()), (1, "a-younger"));
    assert_ne!(object::text(&moved[0].addresses, "/0/value"), "240.240.0.10");
    // What an entry says itself counts more than what was allocated.
    let moved = allocated(&[older.clone(), entry("written", &spec(Some("240.240.0.10")))]);
    assert_eq!((moved.len(), moved[0].name.as_str()), (1, "older"));
    // An entry that opts out has none.
    older["metadata"]["labels"] = json!({"networking.istio.io/enable-autoallocate-ip": "false"});
    assert_eq!(allocated(&[older])[0].addresses, Value::Null);
}

#[test]
fn what_is_wrong_is_named() {
    for (spec, outcome) in [
        (json!({}), "spec.hosts: at least one is required"),
        (json!({"hosts": ["a b"]}), "spec.hosts[0]: \"a b\" is no host name"),
        (json!({"hosts": ["*.x"], "resolution": "DNS"}), "spec.hosts[0]: a wildcard cannot be found by DNS"),
        (
            json!({"hosts": ["x"], "resolution": "ALWAYS"}),
            "spec.resolution: \"ALWAYS\" is not NONE, STATIC, DNS or DNS_ROUND_ROBIN",
        ),
        (
            json!({"hosts": ["x"], "addresses": ["1.2.3"]}),
            "spec.addresses[0]: \"1.2.3\" is no address and no CIDR block",
        ),
        (
            json!({"hosts": ["x"], "ports": [{"number": 0, "name": "p"}]}),
            "spec.ports[0].number: 0 is no port",
        ),
        (
            json!({"hosts": ["x"], "ports": [{"number": 1, "name": "p"}, {"number": 2, "name": "p"}]}),
            "spec.ports[1].name: \"p\" is empty or given twice",
        ),
        (
            json!({"hosts": ["x"], "resolution": "STATIC", "endpoints": [{"address": "y"}]}),
            "spec.endpoints[0].address: \"y\" is no address, as resolution STATIC wants",
        ),
        (
            json!({"hosts": ["x"], "endpoints": [{"address": "1.2.3.4"}]}),
            "spec.endpoints: do not go with resolution NONE",
        ),
    ] {
        let error = check::service_entry(&entry("e", &spec)).unwrap_err();
        assert_eq!(error.to_string(), outcome);
    }
    let error = check::workload_entry(&json!({"spec": {"weight": 1}})).unwrap_err();
    assert_eq!(error.to_string(), "spec.address: is required");
}
