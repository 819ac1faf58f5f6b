//! Objects of two clusters in, what the agents of each are told out.

use isthmus_proto::security::Authorization;
use isthmus_proto::workload::gateway_address::Destination;
use isthmus_proto::workload::{
    GatewayAddress, Locality, NamespacedHostname, NetworkAddress, NetworkMode, TunnelProtocol, WorkloadStatus,
};
use prost::Message as _;
use serde_json::json;

use super::*;
use crate::translate::mesh_config::default_scopes;
use crate::translate::view::fixture::{service_of, workload_of};
use playground_k8s::client::Event;
use playground_k8s::manifest;

const EAST_GATEWAY: &str = "192.168.97.1";
const WEST_GATEWAY: &str = "192.168.97.2";

fn mesh() -> Mesh {
    Mesh {
        trust_domain: "cluster.local".to_owned(),
        aliases: Vec::new(),
        root_namespace: "istio-system".to_owned(),
        domain: "cluster.local".to_owned(),
        scopes: default_scopes(),
    }
}

fn id(cluster: &str) -> ClusterId {
    ClusterId(cluster.to_owned())
}

fn put(clusters: &mut Clusters, cluster: &str, object: Value) {
    let kind = manifest::Kind::named(object::text(&object, "/kind")).unwrap().kind;
    clusters.apply(&id(cluster), kind, Event::Applied(object));
}

fn pod(name: &str, app: &str, account: &str, ip: &str, node: &str) -> Value {
    let hash = "6746879bdd";
    json!({
        "kind": "Pod",
        "metadata": {
            "name": format!("{name}-{hash}-abcde"), "namespace": "sample", "uid": name,
            "labels": {"app": app, "version": name.rsplit('-').next(), "pod-template-hash": hash},
            "annotations": {"ambient.istio.io/redirection": "enabled"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": format!("{name}-{hash}"), "controller": true}],
        },
        "spec": {
            "nodeName": node, "serviceAccountName": account,
            "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 5000}]}],
        },
        "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn service(name: &str, ip: &str, global: bool, target: Value) -> Value {
    let labels = if global { json!({"istio.io/global": "true"}) } else { json!({}) };
    json!({
        "kind": "Service", "metadata": {"name": name, "namespace": "sample", "labels": labels},
        "spec": {
            "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"], "selector": {"app": name},
            "ports": [{"name": "http", "port": 5000, "targetPort": target, "protocol": "TCP"}],
        },
    })
}

/// The clusters of the manifests: helloworld v1 in east, v2 in west, a sleep in both.
fn clusters() -> Clusters {
    let mut clusters = Clusters::default();
    for (cluster, gateway, pods, vip, version) in [
        ("east", EAST_GATEWAY, "10.11.1", "172.21.9.9", "v1"),
        ("west", WEST_GATEWAY, "10.21.1", "172.22.9.9", "v2"),
    ] {
        let network = json!({"topology.istio.io/network": cluster});
        let node = format!("{cluster}-worker");
        let region = json!({"topology.kubernetes.io/region": cluster, "topology.kubernetes.io/zone": "z"});
        for object in [
            json!({"kind": "Namespace", "metadata": {"name": "istio-system", "labels": network}}),
            json!({"kind": "Namespace", "metadata": {"name": "sample"}}),
            json!({"kind": "Node", "metadata": {"name": node, "labels": region}}),
            json!({
                "kind": "Gateway",
                "metadata": {"name": "istio-eastwestgateway", "namespace": "istio-system", "labels": network},
                "spec": {
                    "gatewayClassName": "istio-east-west",
                    "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE", "tls": {"mode": "Terminate"}}],
                },
                "status": {"addresses": [{"type": "IPAddress", "value": gateway}]},
            }),
            service("helloworld", vip, true, "web".into()),
            service("local", &vip.replace("9.9", "8.8"), false, 5000.into()),
            pod(&format!("helloworld-{version}"), "helloworld", "helloworld", &format!("{pods}.1"), &node),
            pod(&format!("local-{version}"), "local", "local", &format!("{pods}.2"), &node),
        ] {
            put(&mut clusters, cluster, object);
        }
    }
    clusters
}

fn view_of(clusters: &Clusters, cluster: &str) -> View {
    all(&mesh(), clusters, &id("east"), "").remove(&id(cluster)).unwrap()
}

const HELLO: &str = "sample/helloworld.sample.svc.cluster.local";
const V1: &str = "east//Pod/sample/helloworld-v1-6746879bdd-abcde";
const SPLIT: &str = "west/SplitHorizonWorkload/istio-system/istio-eastwestgateway/192.168.97.2/sample/helloworld.sample.svc.cluster.local";

#[test]
fn each_network_sees_its_own_workloads_and_the_ways_out() {
    let view = view_of(&clusters(), "east");
    let names: Vec<&str> = view.addresses.all().keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "NetworkGateway/west/192.168.97.2/0",
            V1,
            "east//Pod/sample/local-v1-6746879bdd-abcde",
            HELLO,
            "sample/local.sample.svc.cluster.local",
            SPLIT,
        ]
    );
    let other = view_of(&clusters(), "west");
    assert!(other.addresses.get("NetworkGateway/east/192.168.97.1/0").is_some());
    assert!(other.addresses.get("west//Pod/sample/helloworld-v2-6746879bdd-abcde").is_some());
    assert!(other.addresses.get(V1).is_none());
}

#[test]
fn a_pod_is_a_workload() {
    let view = view_of(&clusters(), "east");
    let made = workload_of(&view, V1);
    assert_eq!((made.uid.as_str(), made.name.as_str()), (V1, "helloworld-v1-6746879bdd-abcde"));
    assert_eq!(made.addresses, [vec![10, 11, 1, 1]]);
    assert_eq!(
        (made.network.as_str(), made.cluster_id.as_str(), made.node.as_str()),
        ("east", "east", "east-worker")
    );
    assert_eq!((made.service_account.as_str(), made.trust_domain.as_str()), ("helloworld", ""));
    assert_eq!((made.canonical_name.as_str(), made.canonical_revision.as_str()), ("helloworld", "v1"));
    assert_eq!((made.workload_name.as_str(), made.workload_type), ("helloworld-v1", 2));
    assert_eq!((made.tunnel_protocol(), made.status()), (TunnelProtocol::Hbone, WorkloadStatus::Healthy));
    let locality = Locality { region: "east".to_owned(), zone: "z".to_owned(), subzone: String::new() };
    assert_eq!(made.locality, Some(locality));
    // The service's target port has a name, which this pod resolves.
    let ports: Vec<(u32, u32)> =
        made.services[HELLO].ports.iter().map(|port| (port.service_port, port.target_port)).collect();
    assert_eq!(ports, [(5000, 5000)]);
    assert_eq!(view.addresses.get(V1).unwrap().aliases, ["east/10.11.1.1"]);
}

#[test]
fn a_global_service_is_merged_and_names_the_accounts_behind_it() {
    let service = service_of(&view_of(&clusters(), "east"), HELLO);
    assert_eq!(service.hostname, "helloworld.sample.svc.cluster.local");
    let addresses: Vec<String> = service.addresses.iter().filter_map(resource::sort_key).collect();
    assert_eq!(addresses, ["east/172.21.9.9", "west/172.22.9.9"]);
    assert_eq!(service.subject_alt_names, ["spiffe://cluster.local/ns/sample/sa/helloworld"]);
    assert_eq!((service.ports[0].service_port, service.ports[0].target_port), (5000, 0));
    assert!(service.canonical && service.load_balancing.is_none());
    let local = service_of(&view_of(&clusters(), "east"), "sample/local.sample.svc.cluster.local");
    assert_eq!((local.addresses.len(), local.subject_alt_names.len()), (1, 0));
}

#[test]
fn another_network_is_one_workload_per_global_service_and_one_per_gateway() {
    let mut clusters = clusters();
    let mut second = pod("helloworld-v3", "helloworld", "other", "10.21.1.9", "west-worker");
    second["status"]["conditions"] = json!([]);
    put(&mut clusters, "west", second);
    let view = view_of(&clusters, "east");
    let split = workload_of(&view, SPLIT);
    assert_eq!((split.capacity, split.tunnel_protocol()), (Some(2), TunnelProtocol::Hbone));
    assert_eq!((split.namespace.as_str(), split.network.as_str()), ("sample", "west"));
    assert_eq!((split.cluster_id.as_str(), split.service_account.as_str()), ("west", ""));
    assert!(split.addresses.is_empty() && split.node.is_empty());
    let gateway = split.network_gateway.unwrap();
    assert_eq!(gateway.hbone_mtls_port, 15008);
    let Some(Destination::Address(address)) = gateway.destination else { panic!("{gateway:?}") };
    assert_eq!((address.network.as_str(), address.address.as_slice()), ("west", &[192, 168, 97, 2][..]));
    assert_eq!(split.services[HELLO].ports[0].service_port, 5000);
    let door = workload_of(&view, "NetworkGateway/west/192.168.97.2/0");
    assert_eq!(
        (door.namespace.as_str(), door.service_account.as_str()),
        ("istio-system", "istio-eastwestgateway")
    );
    assert_eq!((door.addresses, door.tunnel_protocol), (vec![vec![192, 168, 97, 2]], 0));
    let accounts = service_of(&view, HELLO).subject_alt_names;
    assert_eq!(
        accounts,
        ["spiffe://cluster.local/ns/sample/sa/helloworld", "spiffe://cluster.local/ns/sample/sa/other"]
    );
}

#[test]
fn what_is_not_global_everywhere_stays_at_home() {
    let mut clusters = clusters();
    put(&mut clusters, "west", service("helloworld", "172.22.9.9", false, 5000.into()));
    let view = view_of(&clusters, "east");
    assert!(view.addresses.get(SPLIT).is_none());
    assert_eq!(service_of(&view, HELLO).addresses.len(), 1);
    // West has only its own, local copy: nothing of east's is merged into it.
    let view = view_of(&clusters, "west");
    assert_eq!(service_of(&view, HELLO).addresses.len(), 1);
    assert!(!view.addresses.all().keys().any(|name| name.contains("SplitHorizon")));
}

#[test]
fn a_network_without_a_gateway_cannot_be_reached() {
    let mut clusters = clusters();
    let gateway = clusters.cluster(&id("west")).unwrap().of("Gateway").next().unwrap().clone();
    clusters.apply(&id("west"), "Gateway", Event::Deleted(gateway));
    let view = view_of(&clusters, "east");
    assert!(!view.addresses.all().keys().any(|name| name.starts_with("west") || name.starts_with("Network")));
}

#[test]
fn a_gateway_that_is_declared_by_hand_brings_its_port_and_account() {
    let mut clusters = clusters();
    let gateway = json!({
        "kind": "Gateway",
        "metadata": {"name": "to-west", "namespace": "istio-system", "labels": {"topology.istio.io/network": "west"}},
        "spec": {"gatewayClassName": "istio-remote", "listeners": [{"port": 15018, "protocol": "HBONE"}]},
        "status": {"addresses": [{"type": "Hostname", "value": "west.example"}]},
    });
    put(&mut clusters, "east", gateway);
    let view = view_of(&clusters, "east");
    let door = workload_of(&view, "NetworkGateway/west/west.example/15018");
    assert_eq!(
        (door.hostname.as_str(), door.service_account.as_str()),
        ("west.example", "to-west-istio-remote")
    );
    let name = "west/SplitHorizonWorkload/istio-system/to-west/west.example/sample/helloworld.sample.svc.cluster.local";
    assert_eq!(workload_of(&view, name).network_gateway.unwrap().hbone_mtls_port, 15018);
}

#[test]
fn pods_that_cannot_serve_are_unhealthy_or_absent() {
    let mut clusters = clusters();
    let base = pod("helloworld-v1", "helloworld", "helloworld", "10.11.1.1", "east-worker");
    let changed = |pointer: &str, value: Value| {
        let mut pod = base.clone();
        *pod.pointer_mut(pointer).unwrap() = value;
        pod
    };
    let mut deleting = base.clone();
    deleting["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    for unhealthy in [changed("/status/conditions", json!([])), deleting] {
        put(&mut clusters, "east", unhealthy);
        assert_eq!(workload_of(&view_of(&clusters, "east"), V1).status(), WorkloadStatus::Unhealthy);
    }
    for absent in [changed("/status/phase", "Succeeded".into()), changed("/status", json!({}))] {
        put(&mut clusters, "east", absent);
        assert!(view_of(&clusters, "east").addresses.get(V1).is_none());
    }
    let mut plain = base.clone();
    plain["metadata"]["annotations"] = json!({});
    plain["spec"]["hostNetwork"] = true.into();
    put(&mut clusters, "east", plain);
    let made = workload_of(&view_of(&clusters, "east"), V1);
    assert_eq!(
        (made.tunnel_protocol(), made.network_mode()),
        (TunnelProtocol::None, NetworkMode::HostNetwork)
    );
}

#[test]
fn a_service_without_a_selector_has_the_endpoints_of_its_slices() {
    let mut clusters = clusters();
    let mut istiod = service("istiod", "172.21.7.7", false, 15012.into());
    istiod["spec"]["selector"] = json!({});
    istiod["spec"]["ports"] = json!([{"name": "xds", "port": 15012}]);
    put(&mut clusters, "east", istiod);
    let slice = json!({
        "kind": "EndpointSlice",
        "metadata": {"name": "istiod-x", "namespace": "sample", "labels": {"kubernetes.io/service-name": "istiod"}},
        "endpoints": [{"addresses": ["192.168.97.9"]}], "ports": [{"name": "xds", "port": 9000}],
    });
    put(&mut clusters, "east", slice);
    let view = view_of(&clusters, "east");
    let made = workload_of(&view, "east/discovery.k8s.io/EndpointSlice/sample/istiod-x/192.168.97.9");
    let port = &made.services["sample/istiod.sample.svc.cluster.local"].ports[0];
    assert_eq!(
        (port.service_port, port.target_port, made.network_mode()),
        (15012, 9000, NetworkMode::HostNetwork)
    );
}

#[test]
fn load_balancing_follows_the_service() {
    let mut clusters = clusters();
    for (spec, mode, reach) in [
        (json!({"internalTrafficPolicy": "Local"}), 1, vec![4]),
        (json!({"trafficDistribution": "PreferClose"}), 2, vec![6, 1, 2]),
        (json!({"trafficDistribution": "PreferSameNode"}), 2, vec![6, 1, 2, 3, 4]),
    ] {
        let mut service = service("helloworld", "172.21.9.9", true, 5000.into());
        for (key, value) in spec.as_object().unwrap() {
            service["spec"][key] = value.clone();
        }
        put(&mut clusters, "east", service);
        let made = service_of(&view_of(&clusters, "east"), HELLO).load_balancing.unwrap();
        assert_eq!((made.mode, made.routing_preference), (mode, reach));
    }
}

fn policy(name: &str, namespace: &str, selector: &Value) -> Value {
    json!({
        "kind": "AuthorizationPolicy", "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"matchLabels": selector}, "rules": [{}]},
    })
}

#[test]
fn policies_choose_workloads_and_count_from_the_configuration_cluster() {
    let mut clusters = clusters();
    let (hello, v1) = (json!({"app": "helloworld"}), json!({"app": "helloworld", "version": "v1"}));
    put(&mut clusters, "east", policy("v1", "sample", &v1));
    put(&mut clusters, "east", policy("mesh", "istio-system", &hello));
    put(&mut clusters, "east", policy("elsewhere", "other", &hello));
    put(&mut clusters, "west", policy("ignored", "sample", &hello));
    let strict = json!({"mtls": {"mode": "STRICT"}});
    let metadata = json!({"name": "strict", "namespace": "sample"});
    put(&mut clusters, "east", json!({"kind": "PeerAuthentication", "metadata": metadata, "spec": strict}));
    let view = view_of(&clusters, "east");
    let names: Vec<&str> = view.policies.all().keys().map(String::as_str).collect();
    let of_peers = "istio-system/istio_converted_static_strict";
    assert_eq!(names, [of_peers, "istio-system/mesh", "other/elsewhere", "sample/v1"]);
    let bound = workload_of(&view, V1).authorization_policies;
    assert_eq!(bound, [of_peers, "istio-system/mesh", "sample/v1"]);
    let any = view.policies.get("sample/v1").unwrap().resource.as_ref().unwrap();
    assert_eq!(Authorization::decode(any.value.as_slice()).unwrap().rules.len(), 1);
}

#[test]
fn the_same_world_has_the_same_versions() {
    let versions = |clusters: &Clusters| -> Vec<(String, String)> {
        let view = view_of(clusters, "east");
        view.addresses.all().iter().map(|(name, one)| (name.clone(), one.version.clone())).collect()
    };
    let mut clusters = clusters();
    let before = versions(&clusters);
    assert_eq!(versions(&clusters), before);
    let mut moved = pod("helloworld-v1", "helloworld", "helloworld", "10.11.1.1", "east-worker");
    moved["status"]["conditions"] = json!([]);
    put(&mut clusters, "east", moved);
    let changed: Vec<String> = versions(&clusters)
        .into_iter()
        .zip(before)
        .filter(|(now, before)| now != before)
        .map(|((name, _), _)| name)
        .collect();
    assert_eq!(changed, [V1]);
}

fn gateway(namespace: &str, class: &str, labels: &Value, from: &str) -> Value {
    json!({
        "kind": "Gateway", "metadata": {"name": "w", "namespace": namespace, "labels": labels},
        "spec": {"gatewayClassName": class, "listeners": [
            {"name": "mesh", "port": 15008, "protocol": "HBONE", "allowedRoutes": {"namespaces": {"from": from}}},
        ]},
        "status": {"addresses": [{"type": "IPAddress", "value": "172.21.0.77"}]},
    })
}

/// The waypoint of the service and of the pod of helloworld in east.
fn waypoints(clusters: &Clusters) -> (Option<GatewayAddress>, Option<GatewayAddress>) {
    let view = view_of(clusters, "east");
    (service_of(&view, HELLO).waypoint, workload_of(&view, V1).waypoint)
}

#[test]
fn a_waypoint_serves_what_its_label_says() {
    let namespace =
        |labels: Value| json!({"kind": "Namespace", "metadata": {"name": "sample", "labels": labels}});
    for (labels, service, pod) in [
        (json!({}), true, false),
        (json!({"istio.io/waypoint-for": "service"}), true, false),
        (json!({"istio.io/waypoint-for": "workload"}), false, true),
        (json!({"istio.io/waypoint-for": "all"}), true, true),
        (json!({"istio.io/waypoint-for": "none"}), false, false),
    ] {
        let mut clusters = clusters();
        put(&mut clusters, "east", namespace(json!({"istio.io/use-waypoint": "w"})));
        put(&mut clusters, "east", gateway("sample", "istio-waypoint", &labels, "Same"));
        let found = waypoints(&clusters);
        assert_eq!((found.0.is_some(), found.1.is_some()), (service, pod), "{labels}");
        if let Some(address) = found.0.or(found.1) {
            let ip =
                NetworkAddress { network: "east".to_owned(), address: vec![172, 21, 0, 77], length: None };
            let address_of =
                GatewayAddress { hbone_mtls_port: 15008, destination: Some(Destination::Address(ip)) };
            assert_eq!(address, address_of);
        }
    }
}

#[test]
fn an_object_can_go_without_its_namespaces_waypoint() {
    let mut clusters = clusters();
    let labels = json!({"istio.io/use-waypoint": "w", "istio.io/ingress-use-waypoint": "true"});
    put(
        &mut clusters,
        "east",
        json!({"kind": "Namespace", "metadata": {"name": "sample", "labels": labels}}),
    );
    put(&mut clusters, "east", gateway("sample", "istio-waypoint", &json!({}), "Same"));
    assert!(service_of(&view_of(&clusters, "east"), HELLO).ingress_use_waypoint);
    let mut opted_out = service("helloworld", "172.21.9.9", true, "web".into());
    opted_out["metadata"]["labels"]["istio.io/use-waypoint"] = "none".into();
    put(&mut clusters, "east", opted_out);
    assert_eq!(waypoints(&clusters), (None, None));
}

#[test]
fn another_namespaces_waypoint_must_admit_and_have_an_address() {
    let labels = json!({"istio.io/use-waypoint": "w", "istio.io/use-waypoint-namespace": "edge"});
    let mut asks = service("helloworld", "172.21.9.9", true, "web".into());
    asks["metadata"]["labels"].as_object_mut().unwrap().extend(labels.as_object().unwrap().clone());
    for (class, from, found) in [
        ("istio-waypoint", "Same", false),
        ("istio-waypoint", "All", true),
        ("istio-east-west", "All", false),
    ] {
        let mut clusters = clusters();
        put(&mut clusters, "east", asks.clone());
        put(&mut clusters, "east", gateway("edge", class, &json!({}), from));
        assert_eq!(waypoints(&clusters).0.is_some(), found, "{class} {from}");
    }
    let mut clusters = clusters();
    put(&mut clusters, "east", asks);
    let mut gateway = gateway("edge", "istio-waypoint", &json!({}), "All");
    gateway["status"] = json!({});
    put(&mut clusters, "east", gateway.clone());
    assert_eq!(waypoints(&clusters).0, None);
    gateway["status"]["addresses"] = json!([{"type": "Hostname", "value": "w.edge.svc.cluster.local"}]);
    put(&mut clusters, "east", gateway);
    let (namespace, hostname) = ("edge".to_owned(), "w.edge.svc.cluster.local".to_owned());
    let named = Destination::Hostname(NamespacedHostname { namespace, hostname });
    assert_eq!(waypoints(&clusters).0.unwrap().destination, Some(named));
}

#[test]
fn a_pod_of_a_waypoint_expects_what_the_waypoint_says() {
    for (binding, tunnel) in [
        ("PROXY/15088", Some((1, 15088))),
        ("PROXY", Some((1, 0))),
        ("NONE/15000", Some((0, 15000))),
        ("QUIC/1", None),
        ("PROXY/x", None),
    ] {
        let mut clusters = clusters();
        let mut waypoint = gateway("sample", "istio-waypoint", &json!({}), "Same");
        waypoint["metadata"]["annotations"] = json!({"ambient.istio.io/waypoint-inbound-binding": binding});
        put(&mut clusters, "east", waypoint);
        let mut member = pod("w-1", "w", "w", "10.11.1.77", "e1");
        member["metadata"]["labels"]["gateway.networking.k8s.io/gateway-name"] = "w".into();
        put(&mut clusters, "east", member);
        let view = view_of(&clusters, "east");
        let found = workload_of(&view, "east//Pod/sample/w-1-6746879bdd-abcde").application_tunnel;
        assert_eq!(found.map(|found| (found.protocol, found.port)), tunnel, "{binding}");
        assert_eq!(workload_of(&view, V1).application_tunnel, None);
    }
}

#[test]
fn a_headless_service_has_no_address_but_its_workloads() {
    let mut clusters = clusters();
    let mut headless = service("helloworld", "None", false, 5000.into());
    headless["spec"]["clusterIP"] = "None".into();
    put(&mut clusters, "east", headless);
    let view = view_of(&clusters, "east");
    assert!(service_of(&view, HELLO).addresses.is_empty());
    assert!(workload_of(&view, V1).services.contains_key(HELLO));
}

#[test]
fn an_endpoint_of_an_entry_on_another_network_is_reached_through_its_gateway() {
    let mut clusters = clusters();
    let endpoint = json!({"address": "10.99.0.1", "network": "west"});
    put(
        &mut clusters,
        "east",
        json!({
            "kind": "ServiceEntry", "metadata": {"name": "e", "namespace": "sample"},
            "spec": {
                "hosts": ["far.example"], "resolution": "STATIC", "endpoints": [endpoint],
                "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
            },
        }),
    );
    let view = view_of(&clusters, "east");
    let made = workload_of(&view, "east/networking.istio.io/ServiceEntry/sample/e/10.99.0.1");
    let gateway = made.network_gateway.unwrap();
    assert_eq!((made.network.as_str(), gateway.hbone_mtls_port), ("west", 15008));
    // Entries count from the cluster whose configuration counts, wherever the agents are.
    assert!(view_of(&clusters, "west").addresses.get("sample/far.example").is_some());
}
