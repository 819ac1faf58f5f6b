//! Tables of objects and what they mean.

use std::collections::BTreeSet;

use kube::api::DynamicObject;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use super::*;
use crate::{Backend, Listener, TlsRoutes};

const NOW: &str = "2026-01-02T03:04:05Z";

fn settings() -> Settings {
    Settings {
        namespace: "istio-system".to_owned(),
        name: "gw".to_owned(),
        network: "west".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        reserved_ports: BTreeSet::from([15020, 15021]),
    }
}

fn kind(object: &Value) -> Kind {
    Kind::ALL.into_iter().find(|kind| object["kind"] == kind.name()).unwrap()
}

/// What the watches would report of these objects.
fn store(all: &[Value]) -> Objects {
    store_without(None, all)
}

/// The same when a kind cannot be read.
fn store_without(refused: Option<Kind>, all: &[Value]) -> Objects {
    let mut objects = Objects::default();
    for of in Kind::ALL {
        if refused == Some(of) {
            assert!(objects.refuse(of, "forbidden".to_owned()));
            continue;
        }
        objects.apply(of, Event::Init);
        for object in all.iter().filter(|object| kind(object) == of) {
            let object: DynamicObject = serde_json::from_value(object.clone()).unwrap();
            objects.apply(of, Event::InitApply(object));
        }
        objects.apply(of, Event::InitDone);
    }
    assert!(objects.is_complete());
    objects
}

fn translated(all: &[Value]) -> Translation {
    translate(&store(all), &settings(), NOW)
}

fn class(name: &str, controller: &str) -> Value {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
           "metadata": {"name": name, "generation": 1, "resourceVersion": "1"}, "spec": {"controllerName": controller}})
}

fn gateway(listeners: Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"namespace": "istio-system", "name": "gw", "generation": 3, "resourceVersion": "7",
                     "labels": {"topology.istio.io/network": "west"}},
        "spec": {"gatewayClassName": "istio-east-west", "listeners": listeners},
    })
}

fn mesh() -> Value {
    json!({"name": "mesh", "port": 15008, "protocol": "HBONE", "tls": {"mode": "Terminate", "options":
        {"gateway.istio.io/tls-terminate-mode": "ISTIO_MUTUAL"}}})
}

fn tls(name: &str, port: u16) -> Value {
    json!({"name": name, "port": port, "protocol": "TLS", "tls": {"mode": "Passthrough"}})
}

fn route(
    kind: &str,
    namespace: &str,
    name: &str,
    hostnames: &[&str],
    parent: Value,
    backends: Value,
) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
        "metadata": {"namespace": namespace, "name": name, "generation": 1, "resourceVersion": "9",
                     "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"parentRefs": [parent], "hostnames": hostnames, "rules": [{"backendRefs": backends}]},
    })
}

fn tls_route(name: &str, hostnames: &[&str], section: &str) -> Value {
    let parent = json!({"name": "gw", "sectionName": section});
    route("TLSRoute", "istio-system", name, hostnames, parent, json!([{"name": "istiod", "port": 15012}]))
}

fn service(namespace: &str, name: &str, ingress: &[&str]) -> Value {
    let ingress: Vec<_> = ingress.iter().map(|ip| json!({"ip": ip})).collect();
    json!({"apiVersion": "v1", "kind": "Service",
           "metadata": {"namespace": namespace, "name": name, "labels": {GATEWAY_LABEL: name}},
           "status": {"loadBalancer": {"ingress": ingress}}})
}

const GATEWAY_LABEL: &str = crate::GATEWAY_NAME;

fn to(name: &str, port: u16, weight: u32) -> Backend {
    let hostname = format!("{name}.svc.cluster.local").into();
    Backend { target: Some(isthmus_model::Authority::Host { hostname, port }), weight }
}

fn status(translation: &Translation, kind: Kind) -> &Value {
    &translation.patches.iter().find(|patch| patch.kind == kind).unwrap().status
}

/// Type → status and reason.
fn conditions(list: &Value) -> Vec<String> {
    let one =
        |one: &Value| format!("{} {} {}", text(one, "/type"), text(one, "/status"), text(one, "/reason"));
    list.as_array().unwrap().iter().map(one).collect()
}

/// The stored object with a patch merged into its status.
fn patched(mut object: Value, translation: &Translation) -> Value {
    let of = kind(&object);
    for patch in &translation.patches {
        if patch.kind == of && patch.name.name == object["metadata"]["name"] {
            for (field, value) in patch.status.as_object().unwrap() {
                object["status"][field] = value.clone();
            }
        }
    }
    object
}

#[test]
fn an_east_west_gateway_listens_and_says_where() {
    let listeners = json!([mesh(), tls("istiod", 15012), tls("webhook", 15017)]);
    let all = [
        gateway(listeners),
        service("istio-system", "gw", &["192.0.2.9"]),
        service("istio-system", "istiod", &[]),
        tls_route("istiod", &["istiod.istio-system.svc"], "istiod"),
    ];
    let got = translated(&all);
    let listeners = got.listeners.as_ref().unwrap();
    assert_eq!(listeners[&15008], Listener::Hbone);
    let names = [("istiod.istio-system.svc".to_owned(), vec![to("istiod.istio-system", 15012, 1)])];
    assert_eq!(listeners[&15012], Listener::Tls(TlsRoutes { names: names.into(), ..TlsRoutes::default() }));
    assert_eq!(listeners[&15017], Listener::Tls(TlsRoutes::default()));
    assert_eq!(got.warnings, Vec::<String>::new());

    let written = status(&got, Kind::Gateway);
    assert_eq!(written["addresses"], json!([{"type": "IPAddress", "value": "192.0.2.9"}]));
    assert_eq!(conditions(&written["conditions"]), ["Accepted True Accepted", "Programmed True Programmed"]);
    assert_eq!(written["conditions"][0]["observedGeneration"], 3);
    let attached: Vec<_> =
        written["listeners"].as_array().unwrap().iter().map(|one| &one["attachedRoutes"]).collect();
    assert_eq!(attached, [0, 1, 0]);
    let of_route = status(&got, Kind::TlsRoute);
    assert_eq!(of_route["parents"][0]["controllerName"], CONTROLLER);
    assert_eq!(
        conditions(&of_route["parents"][0]["conditions"]),
        ["Accepted True Accepted", "ResolvedRefs True ResolvedRefs"]
    );

    // What was written needs no second patch, whichever replica looks at it, and whenever.
    let again = all.map(|object| patched(object, &got));
    assert_eq!(translate(&store(&again), &settings(), "2027-01-01T00:00:00Z").patches, []);
}

#[test]
fn status_belongs_to_the_controller_of_the_class() {
    let (ours, theirs) = (CONTROLLER, "istio.io/eastwest-controller");
    for (of, classes, written) in [
        ("istio-east-west", vec![], true),
        ("istio-east-west", vec![class("istio-east-west", ours)], true),
        ("istio-east-west", vec![class("istio-east-west", theirs)], false),
        // An istiod goes by the name of the class.
        ("istio-east-west", vec![class("istio-east-west", ours), class("istio", theirs)], false),
        ("istio-east-west", vec![class("istio", theirs)], false),
        ("isthmus-east-west", vec![class("isthmus-east-west", ours), class("istio", theirs)], true),
        ("other", vec![class("other", "example.com/controller")], false),
    ] {
        let mut gateway = gateway(json!([mesh()]));
        gateway["spec"]["gatewayClassName"] = json!(of);
        let mut all = vec![gateway, service("istio-system", "gw", &["192.0.2.9"])];
        all.extend(classes.clone());
        let got = translated(&all);
        assert_eq!(got.patches.iter().any(|patch| patch.kind == Kind::Gateway), written, "{of} {classes:?}");
        assert_eq!(got.listeners.unwrap().len(), 1, "it is served in any case");
    }
    // As long as classes cannot be read, another controller may exist.
    let objects = store_without(Some(Kind::GatewayClass), &[gateway(json!([mesh()]))]);
    assert_eq!(translate(&objects, &settings(), NOW).patches, []);
}

#[test]
fn a_class_of_ours_is_accepted_and_others_are_left_alone() {
    let got =
        translated(&[class("isthmus-east-west", CONTROLLER), class("istio", "istio.io/gateway-controller")]);
    assert_eq!(got.patches.len(), 1);
    assert_eq!(got.patches[0].name, ObjectName::new("", "isthmus-east-west"));
    assert_eq!(conditions(&got.patches[0].status["conditions"]), ["Accepted True Accepted"]);
    assert_eq!(got.listeners, None);
}

#[test]
fn listeners_that_cannot_be_served_say_why() {
    let invalid = [
        (json!({"name": "l", "port": 80, "protocol": "HTTP"}), "UnsupportedProtocol", false),
        (
            json!({"name": "l", "port": 443, "protocol": "TLS", "tls": {"mode": "Terminate"}}),
            "UnsupportedProtocol",
            false,
        ),
        (
            json!({"name": "l", "port": 15009, "protocol": "HBONE", "tls": {"mode": "Passthrough"}}),
            "UnsupportedProtocol",
            false,
        ),
        (
            json!({"name": "l", "port": 15009, "protocol": "HBONE", "tls": {"mode": "Terminate",
                "options": {"gateway.istio.io/tls-terminate-mode": "SIMPLE"}}}),
            "UnsupportedProtocol",
            false,
        ),
        (json!({"name": "l", "port": 15021, "protocol": "TCP"}), "PortUnavailable", false),
        (json!({"name": "l", "port": 15008, "protocol": "TCP"}), "ProtocolConflict", true),
        (json!({"name": "l", "port": 15008, "protocol": "HBONE"}), "HostnameConflict", true),
    ];
    for (listener, reason, conflict) in invalid {
        let got =
            translated(&[gateway(json!([mesh(), listener])), service("istio-system", "gw", &["192.0.2.9"])]);
        let written = status(&got, Kind::Gateway);
        let found = conditions(&written["listeners"][1]["conditions"]);
        let conflicted = if conflict {
            format!("Conflicted True {reason}")
        } else {
            "Conflicted False NoConflicts".to_owned()
        };
        let want = [
            format!("Accepted False {reason}"),
            conflicted,
            "Programmed False Invalid".to_owned(),
            "ResolvedRefs True ResolvedRefs".to_owned(),
        ];
        assert_eq!(found, want, "{listener}");
        assert_eq!(conditions(&written["conditions"])[0], "Accepted True ListenersNotValid");
        assert_eq!(got.listeners.unwrap().keys().copied().collect::<Vec<_>>(), [15008], "{listener}");
        assert_eq!(got.warnings.len(), 1, "{listener}");
    }
    let got = translated(&[gateway(json!([{"name": "l", "port": 80, "protocol": "HTTP"}]))]);
    let written = status(&got, Kind::Gateway);
    assert_eq!(
        conditions(&written["conditions"]),
        ["Accepted False ListenersNotValid", "Programmed False Invalid"]
    );
}

#[test]
fn listeners_of_one_port_are_told_apart_by_hostname() {
    let with = |name: &str, hostname: &str| {
        let mut listener = tls(name, 443);
        listener["hostname"] = json!(hostname);
        listener
    };
    let listeners =
        json!([with("a", "*.example.com"), with("b", "b.example.com"), with("c", "*.EXAMPLE.com")]);
    let all = [
        gateway(listeners),
        service("istio-system", "istiod", &[]),
        tls_route("any", &[], "a"),
        tls_route("some", &["b.example.com", "*.x.org", "*.com"], "b"),
    ];
    let got = translated(&all);
    let Listener::Tls(routes) = &got.listeners.as_ref().unwrap()[&443] else { panic!() };
    assert_eq!(routes.suffixes.keys().collect::<Vec<_>>(), ["example.com"]);
    assert_eq!(routes.names.keys().collect::<Vec<_>>(), ["b.example.com"]);
    assert_eq!(routes.otherwise, None);
    let third = &status(&got, Kind::Gateway)["listeners"][2]["conditions"];
    assert_eq!(conditions(third)[0], "Accepted False HostnameConflict");
}

#[test]
fn the_older_route_wins_a_hostname() {
    let route = |name: &str, port: u16, created: &str| {
        let parent = json!({"name": "gw"});
        let backends = json!([{"name": "istiod", "port": port}]);
        let mut route = route("TLSRoute", "istio-system", name, &["A.example"], parent, backends);
        route["metadata"]["creationTimestamp"] = json!(created);
        route
    };
    let all = [
        gateway(json!([tls("t", 443)])),
        service("istio-system", "istiod", &[]),
        route("a", 1, "2026-01-02T00:00:00Z"),
        route("b", 2, "2026-01-01T00:00:00Z"),
    ];
    let got = translated(&all);
    let Listener::Tls(routes) = &got.listeners.as_ref().unwrap()[&443] else { panic!() };
    assert_eq!(routes.names["a.example"], [to("istiod.istio-system", 2, 1)]);
    assert_eq!(status(&got, Kind::Gateway)["listeners"][0]["attachedRoutes"], 2);
}

#[test]
fn routes_that_do_not_attach_say_why() {
    let ours = json!({"name": "gw", "namespace": "istio-system"});
    let section = |name: &str| json!({"name": "gw", "namespace": "istio-system", "sectionName": name});
    let mut named = tls("named", 444);
    named["hostname"] = json!("a.example");
    let listeners = json!([mesh(), tls("t", 443), named, {"name": "tcp", "port": 9000, "protocol": "TCP"}]);
    let backends = || json!([{"name": "istiod", "port": 15012}]);
    for (kind_of, namespace, parent, want) in [
        ("TLSRoute", "istio-system", section("none"), Some("Accepted False NoMatchingParent")),
        ("TLSRoute", "istio-system", section("mesh"), Some("Accepted False NotAllowedByListeners")),
        ("TLSRoute", "istio-system", section("tcp"), Some("Accepted False NotAllowedByListeners")),
        ("TCPRoute", "istio-system", section("t"), Some("Accepted False NotAllowedByListeners")),
        ("TLSRoute", "apps", ours.clone(), Some("Accepted False NotAllowedByListeners")),
        ("TLSRoute", "istio-system", section("named"), Some("Accepted False NoMatchingListenerHostname")),
        ("TLSRoute", "istio-system", section("t"), Some("Accepted True Accepted")),
        ("TCPRoute", "istio-system", section("tcp"), Some("Accepted True Accepted")),
        ("TLSRoute", "apps", json!({"name": "gw"}), None),
        ("TLSRoute", "istio-system", json!({"name": "gw", "kind": "Service", "group": ""}), None),
    ] {
        let route = route(kind_of, namespace, "r", &["b.example"], parent.clone(), backends());
        let got =
            translated(&[gateway(listeners.clone()), service("istio-system", "istiod", &[]), route.clone()]);
        let of_route = got.patches.iter().find(|patch| patch.kind == kind(&route));
        let found = of_route.map(|patch| conditions(&patch.status["parents"][0]["conditions"]).remove(0));
        assert_eq!(found.as_deref(), want, "{kind_of} {namespace} {parent}");
    }
}

#[test]
fn namespaces_of_routes_are_selected_by_labels() {
    let mut listener = tls("t", 443);
    listener["allowedRoutes"] =
        json!({"namespaces": {"from": "Selector", "selector": {"matchLabels": {"team": "a"}}}});
    for (labels, want) in [(json!({"team": "a"}), 1), (json!({}), 0)] {
        let parent = json!({"name": "gw", "namespace": "istio-system"});
        let got = translated(&[
            gateway(json!([listener])),
            json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "apps", "labels": labels}}),
            service("apps", "web", &[]),
            route("TLSRoute", "apps", "r", &["a.example"], parent, json!([{"name": "web", "port": 443}])),
        ]);
        assert_eq!(status(&got, Kind::Gateway)["listeners"][0]["attachedRoutes"], want, "{labels}");
    }
}

#[test]
fn backends_that_cannot_be_used_refuse_their_share() {
    let grant = json!({
        "kind": "ReferenceGrant", "apiVersion": "gateway.networking.k8s.io/v1beta1",
        "metadata": {"namespace": "apps", "name": "g"},
        "spec": {"from": [{"group": "gateway.networking.k8s.io", "kind": "TLSRoute", "namespace": "istio-system"}],
                 "to": [{"group": "", "kind": "Service", "name": "web"}]},
    });
    for (backend, granted, want) in [
        (json!({"name": "istiod", "port": 1, "weight": 3}), false, "True ResolvedRefs"),
        (json!({"name": "none", "port": 1, "weight": 3}), false, "False BackendNotFound"),
        (json!({"name": "istiod", "weight": 3}), false, "False UnsupportedValue"),
        (json!({"name": "istiod", "kind": "Host", "port": 1, "weight": 3}), false, "False InvalidKind"),
        (json!({"name": "web", "namespace": "apps", "port": 1, "weight": 3}), false, "False RefNotPermitted"),
        (json!({"name": "web", "namespace": "apps", "port": 1, "weight": 3}), true, "True ResolvedRefs"),
        (
            json!({"name": "other", "namespace": "apps", "port": 1, "weight": 3}),
            true,
            "False RefNotPermitted",
        ),
    ] {
        let backends = json!([{"name": "istiod", "port": 15012}, backend]);
        let mut all = vec![
            gateway(json!([tls("t", 443)])),
            service("istio-system", "istiod", &[]),
            service("apps", "web", &[]),
            route("TLSRoute", "istio-system", "r", &["a.example"], json!({"name": "gw"}), backends),
        ];
        all.extend(granted.then(|| grant.clone()));
        let got = translated(&all);
        let found = conditions(&status(&got, Kind::TlsRoute)["parents"][0]["conditions"]).remove(1);
        assert_eq!(found, format!("ResolvedRefs {want}"), "{backend}");
        let Listener::Tls(routes) = &got.listeners.unwrap()[&443] else { panic!() };
        let [first, second] = routes.names["a.example"].as_slice() else { panic!() };
        assert_eq!(*first, to("istiod.istio-system", 15012, 1));
        assert_eq!((second.target.is_some(), second.weight), (want.starts_with("True"), 3), "{backend}");
    }
}

#[test]
fn a_routes_other_parents_are_kept_and_ours_is_removed_with_its_reference() {
    let foreign = json!({"parentRef": {"name": "gw"}, "controllerName": "istio.io/gateway-controller", "conditions": []});
    let elsewhere = json!({"parentRef": {"name": "other"}, "controllerName": CONTROLLER, "conditions": []});
    let mut attached = tls_route("r", &["a.example"], "t");
    attached["status"] = json!({"parents": [foreign, elsewhere]});
    let all = [gateway(json!([tls("t", 443)])), service("istio-system", "istiod", &[]), attached.clone()];
    let got = translated(&all);
    let parents = status(&got, Kind::TlsRoute)["parents"].as_array().unwrap().clone();
    assert_eq!(parents.len(), 3);
    assert_eq!(parents[..2], [foreign.clone(), elsewhere.clone()]);

    attached["status"] = json!({"parents": parents});
    attached["spec"]["parentRefs"] = json!([{"name": "other"}]);
    let got = translated(&[gateway(json!([tls("t", 443)])), attached]);
    assert_eq!(status(&got, Kind::TlsRoute)["parents"], json!([foreign, elsewhere]));
}

#[test]
fn tcp_and_sidecar_listeners_are_translated() {
    let mut sidecars = tls("cross-network", 15443);
    sidecars["tls"]["options"] = json!({"gateway.istio.io/listener-protocol": "auto-passthrough"});
    let listeners = json!([sidecars, {"name": "tcp", "port": 9000, "protocol": "TCP"}]);
    let parent = json!({"name": "gw", "port": 9000});
    let backends = json!([{"name": "istiod", "port": 1, "weight": 2}, {"name": "istiod", "port": 2}]);
    let got = translated(&[
        gateway(listeners),
        service("istio-system", "istiod", &[]),
        route("TCPRoute", "istio-system", "r", &[], parent, backends),
    ]);
    let listeners = got.listeners.unwrap();
    let sidecars = TlsRoutes { auto_passthrough: true, ..TlsRoutes::default() };
    assert_eq!(listeners[&15443], Listener::Tls(sidecars));
    let istiod = "istiod.istio-system";
    assert_eq!(listeners[&9000], Listener::Tcp(vec![to(istiod, 1, 2), to(istiod, 2, 1)]));
}

#[test]
fn addresses_come_from_the_gateway_its_service_or_its_nodes() {
    let pod = |ready: &str, ip: &str, host: bool| {
        json!({"kind": "Pod", "apiVersion": "v1",
               "metadata": {"namespace": "istio-system", "name": ip, "labels": {GATEWAY_LABEL: "gw"}},
               "spec": {"hostNetwork": host},
               "status": {"hostIP": ip, "conditions": [{"type": "Ready", "status": ready}]}})
    };
    let asked = |kind: &str, value: &str| json!([{"type": kind, "value": value}]);
    let elsewhere = || service("other", "gw", &["192.0.2.7"]);
    for (addresses, objects, want, programmed) in [
        (json!([]), vec![elsewhere()], vec![], "False AddressNotAssigned"),
        (json!([]), vec![service("istio-system", "gw", &[])], vec![], "False AddressNotAssigned"),
        (
            json!([]),
            vec![service("istio-system", "gw", &["192.0.2.9", "192.0.2.8"])],
            vec!["192.0.2.8", "192.0.2.9"],
            "True Programmed",
        ),
        (
            asked("Hostname", "gw.istio-system.svc.cluster.local"),
            vec![service("istio-system", "gw", &["192.0.2.9"])],
            vec!["192.0.2.9"],
            "True Programmed",
        ),
        (
            asked("Hostname", "unlabelled"),
            vec![service("istio-system", "unlabelled", &["192.0.2.9"])],
            vec!["192.0.2.9"],
            "True Programmed",
        ),
        (asked("Hostname", "gw.example.com"), vec![], vec!["gw.example.com"], "True Programmed"),
        (
            asked("IPAddress", "198.51.100.1"),
            vec![service("istio-system", "gw", &["192.0.2.9"])],
            vec!["198.51.100.1"],
            "True Programmed",
        ),
        (
            json!([]),
            vec![
                pod("True", "10.0.0.2", true),
                pod("False", "10.0.0.3", true),
                pod("True", "10.0.0.4", false),
            ],
            vec!["10.0.0.2"],
            "True Programmed",
        ),
    ] {
        let mut gateway = gateway(json!([mesh()]));
        gateway["spec"]["addresses"] = addresses.clone();
        let mut all = vec![gateway];
        all.extend(objects);
        let got = translated(&all);
        let written = status(&got, Kind::Gateway);
        let found: Vec<_> =
            written["addresses"].as_array().unwrap().iter().map(|one| text(one, "/value")).collect();
        assert_eq!(found, want, "{addresses}");
        assert!(written["addresses"].as_array().unwrap().iter().all(|one| one["type"].is_string()));
        assert_eq!(conditions(&written["conditions"])[1], format!("Programmed {programmed}"), "{addresses}");
    }
}

#[test]
fn a_gateway_of_another_network_and_a_class_that_is_not_found_are_warned_of() {
    let mut other = gateway(json!([mesh()]));
    other["metadata"]["labels"] = json!({});
    other["spec"]["gatewayClassName"] = json!("isthmus-east-west");
    let warnings = translated(&[other]).warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("topology.istio.io/network") && warnings[1].contains("istio-remote"));
}
