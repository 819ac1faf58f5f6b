use super::pods::{ConnectionView, Connections, PodView};
use super::*;
use crate::StaticConfig;
use isthmus_model::policy::{Match, StringMatch};
use isthmus_model::{Action, NetworkAddress, Policy, Protocol, Scope, Service, Workload};
use std::sync::Arc;

struct World;

fn service() -> Service {
    Service {
        name: "cart".into(),
        namespace: "shop".into(),
        hostname: "cart.shop.svc.cluster.local".into(),
        vips: vec![NetworkAddress { network: "net1".into(), address: "10.96.0.7".parse().unwrap() }],
        cidr_vips: Vec::new(),
        ports: [(80, 8080)].into(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        weighted_waypoints: Vec::new(),
        load_balancer: None,
        ip_families: None,
        canonical: true,
        visibility: isthmus_model::Visibility::Public,
    }
}

impl Source for World {
    fn workloads(&self) -> Vec<Arc<Workload>> {
        vec![Arc::new(Workload {
            uid: "c1//Pod/shop/cart-1".into(),
            name: "cart-1".into(),
            namespace: "shop".into(),
            addresses: vec!["10.1.0.5".parse().unwrap()],
            protocol: Protocol::Hbone,
            capacity: 1,
            ..Workload::default()
        })]
    }
    fn services(&self) -> Vec<(Arc<Service>, Vec<EndpointView>)> {
        let endpoint = EndpointView {
            uid: "c1//Pod/shop/cart-1".into(),
            ports: [(80, 8080)].into(),
            status: Health::Healthy,
        };
        vec![(Arc::new(service()), vec![endpoint])]
    }
    fn staged(&self) -> Vec<(String, Vec<EndpointView>)> {
        Vec::new()
    }
    fn policies(&self) -> Vec<Arc<Policy>> {
        let only = Match {
            principals: vec![StringMatch::Exact("td/ns/a/sa/b".into())],
            destination_ports: vec![80],
            ..Match::default()
        };
        vec![Arc::new(Policy {
            name: "only-web".into(),
            namespace: "shop".into(),
            scope: Scope::Namespace,
            action: Action::Allow,
            rules: vec![vec![vec![only]]],
            dry_run: false,
        })]
    }
    fn certificates(&self) -> Vec<CertificateView> {
        let pem = PemView {
            pem: "PEM".into(),
            serial: "99".into(),
            valid_from: "2026-01-01T00:00:00Z".into(),
            expires: "2026-01-02T00:00:00Z".into(),
        };
        vec![CertificateView {
            identity: "spiffe://a/ns/b/sa/c".into(),
            state: "Available".into(),
            chain: vec![pem],
            roots: Vec::new(),
        }]
    }
    fn pods(&self) -> Option<Vec<PodView>> {
        let open = ConnectionView {
            src: "10.1.0.9:41000".into(),
            original_dst: None,
            actual_dst: "10.1.0.5:8080".into(),
            protocol: "HBONE",
        };
        Some(vec![PodView {
            uid: "u1".into(),
            name: "cart-1".into(),
            namespace: "shop".into(),
            service_account: "cart".into(),
            connections: Some(Connections { inbound: vec![open], outbound: Vec::new() }),
        }])
    }
    fn rejected(&self) -> Vec<(String, String)> {
        vec![("bad".into(), "why".into())]
    }
    fn config(&self) -> Value {
        json!({"proxyMode": "Shared"})
    }
    fn static_config(&self) -> StaticConfig {
        StaticConfig::default()
    }
}

#[test]
fn the_keys_are_those_that_istioctl_reads() {
    let dump = dump(&World, &Filter::default());
    for key in ["certificates", "policies", "services", "workloads"] {
        assert!(dump[key].is_array(), "{key} is not an array");
    }
    assert_eq!(dump["workloads"][0]["protocol"], "HBONE");
    assert_eq!(dump["workloads"][0]["workloadIps"][0], "10.1.0.5");
    assert!(dump["workloads"][0].get("waypoint").is_none());
    assert_eq!(dump["services"][0]["vips"][0], "net1/10.96.0.7");
    assert_eq!(dump["services"][0]["endpoints"]["c1//Pod/shop/cart-1"]["port"]["80"], 8080);
    assert_eq!(dump["policies"][0]["rules"][0][0][0]["principals"][0]["Exact"], "td/ns/a/sa/b");
    assert_eq!(dump["certificates"][0]["certChain"][0]["pem"], "UEVN");
    assert_eq!(dump["workloadState"]["u1"]["state"], "Up");
    assert_eq!(dump["workloadState"]["u1"]["connections"]["inbound"][0]["originalDst"], Value::Null);
}

#[test]
fn a_filter_narrows_the_dump() {
    let only = dump(&World, &Filter::from_query("kind=workloads&namespace=other"));
    assert_eq!(only, json!({"workloads": []}));
}
