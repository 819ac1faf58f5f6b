//! What a cluster does by itself.

use std::collections::BTreeSet;

use serde_json::json;

use crate::api::fixture::{deployment, kind, server};
use crate::api::store::Key;
use crate::api::target::Part;
use crate::api::test_server::key;
use crate::manifest::object;

#[test]
fn a_deployment_has_its_pods_spread_over_the_nodes() {
    let server = server();
    server.create("Deployment", Some("sample"), deployment("hello", 2, "a")).unwrap();
    let pods = server.pods();
    let nodes: BTreeSet<&str> = pods.iter().map(|pod| object::text(pod, "/spec/nodeName")).collect();
    assert_eq!(nodes, BTreeSet::from(["n1", "n2"]));
    for pod in &pods {
        let owner = &pod["metadata"]["ownerReferences"][0];
        let hash = object::label(pod, "pod-template-hash").unwrap();
        assert_eq!(owner["kind"], "ReplicaSet");
        assert_eq!(owner["name"], format!("hello-{hash}"));
        assert!(object::name(pod).starts_with(&format!("hello-{hash}-")));
        assert_eq!(object::label(pod, "app"), Some("hello"));
    }
    server.run_pods();
    let status = server.get(&key("Deployment", "hello")).unwrap()["status"].clone();
    assert_eq!((&status["readyReplicas"], &status["conditions"][0]["status"]), (&2.into(), &"True".into()));
}

#[test]
fn scaling_and_deleting_take_pods_away() {
    let server = server();
    server.create("Deployment", Some("sample"), deployment("hello", 3, "a")).unwrap();
    server.patch(&key("Deployment", "hello"), Part::Main, &json!({"spec": {"replicas": 1}})).unwrap();
    server.stop_pods();
    assert_eq!(server.pods().len(), 1);
    let pod = server.pods().remove(0);
    server.delete(&key("Pod", object::name(&pod)), Some(0)).unwrap();
    assert_eq!(server.pods().len(), 1, "a pod that is deleted is made again");
    server.delete(&key("Deployment", "hello"), None).unwrap();
    assert!(server.pods().iter().all(|pod| object::is_deleting(pod)));
    server.stop_pods();
    assert!(server.pods().is_empty());
}

#[test]
fn a_new_template_replaces_pods_once_the_new_ones_are_ready() {
    let server = server();
    server.create("Deployment", Some("sample"), deployment("hello", 1, "a")).unwrap();
    server.run_pods();
    let old = object::name(&server.pods()[0]).to_owned();
    let image = json!({"spec": deployment("hello", 1, "b")["spec"]});
    server.patch(&key("Deployment", "hello"), Part::Main, &image).unwrap();
    assert_eq!(server.pods().len(), 2);
    assert!(!object::is_deleting(&server.get(&key("Pod", &old)).unwrap()));
    server.run_pods();
    assert!(object::is_deleting(&server.get(&key("Pod", &old)).unwrap()));
}

#[test]
fn many_pods_are_replaced_one_by_one() {
    let server = server();
    server.create("Deployment", Some("sample"), deployment("hello", 3, "a")).unwrap();
    server.run_pods();
    let image = json!({"spec": deployment("hello", 3, "b")["spec"]});
    server.patch(&key("Deployment", "hello"), Part::Main, &image).unwrap();
    for _ in 0..3 {
        let pods = server.pods();
        assert_eq!(pods.len(), 4, "one more than there should be");
        assert!(pods.iter().all(|pod| !object::is_deleting(pod)), "none goes before its successor is ready");
        server.run_pods();
        let leaving = server.pods().iter().filter(|pod| object::is_deleting(pod)).count();
        assert_eq!(leaving, 1);
        server.stop_pods();
    }
    assert_eq!(server.pods().len(), 3);
    let mut hasty = deployment("hasty", 4, "a");
    hasty["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "50%"}});
    server.create("Deployment", Some("sample"), hasty.clone()).unwrap();
    server.run_pods();
    hasty["spec"]["template"]["spec"]["containers"][0]["image"] = "b".into();
    server.patch(&key("Deployment", "hasty"), Part::Main, &json!({"spec": hasty["spec"]})).unwrap();
    let pods = server.pods();
    let of_hasty = || pods.iter().filter(|pod| object::name(pod).starts_with("hasty"));
    assert_eq!((of_hasty().count(), of_hasty().filter(|pod| object::is_deleting(pod)).count()), (6, 2));
}

#[test]
fn a_daemon_set_has_one_pod_per_node() {
    let server = server();
    server.create("DaemonSet", Some("sample"), deployment("agent", 1, "a")).unwrap();
    assert_eq!(server.pods().len(), 2);
    server.create("Node", None, json!({"metadata": {"name": "n3"}})).unwrap();
    let pods = server.pods();
    let nodes: BTreeSet<&str> = pods.iter().map(|pod| object::text(pod, "/spec/nodeName")).collect();
    assert_eq!((pods.len(), nodes.len()), (3, 3));
    server.delete(&key("DaemonSet", "agent"), None).unwrap();
    server.stop_pods();
    assert!(server.pods().is_empty());
}

#[test]
fn pods_that_cannot_be_made_are_reported_and_made_later() {
    let server = server();
    let mut wanted = deployment("hello", 1, "a");
    wanted["spec"]["template"]["spec"]["serviceAccountName"] = "hello".into();
    server.create("Deployment", Some("sample"), wanted).unwrap();
    let status = server.get(&key("Deployment", "hello")).unwrap()["status"].clone();
    assert!(object::text(&status, "/conditions/1/message").contains("sample/hello was not found"));
    server.create("ServiceAccount", Some("sample"), json!({"metadata": {"name": "hello"}})).unwrap();
    assert_eq!(server.pods().len(), 1);
}

#[test]
fn gateways_and_load_balancers_get_the_given_addresses() {
    let server = server();
    let gateway =
        server.create("Gateway", Some("sample"), json!({"metadata": {"name": "gw"}, "spec": {}})).unwrap();
    let stored = server.get(&key("Gateway", "gw")).unwrap();
    assert_eq!(stored["status"]["addresses"][0], json!({"type": "IPAddress", "value": "192.168.97.1"}));
    let owner = json!([{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "name": "gw", "uid": gateway["metadata"]["uid"]}]);
    let service =
        json!({"metadata": {"name": "gw", "ownerReferences": owner}, "spec": {"type": "LoadBalancer"}});
    server.create("Service", Some("sample"), service).unwrap();
    let stored = server.get(&key("Service", "gw")).unwrap();
    assert_eq!(stored["status"]["loadBalancer"]["ingress"][0]["ip"], "192.168.97.1");
    server.delete(&key("Gateway", "gw"), None).unwrap();
    assert!(server.get(&key("Service", "gw")).is_none(), "what a gateway owned goes with it");
}

#[test]
fn a_namespace_has_its_own_objects_and_is_emptied_before_it_goes() {
    let server = server();
    assert!(server.get(&key("ServiceAccount", "default")).is_some());
    assert_eq!(server.get(&key("ConfigMap", "kube-root-ca.crt")).unwrap()["data"]["ca.crt"], "PEM");
    server.create("Deployment", Some("sample"), deployment("hello", 1, "a")).unwrap();
    let sample = Key::new(kind("Namespace"), "", "sample");
    server.delete(&sample, None).unwrap();
    assert!(object::is_deleting(&server.get(&sample).unwrap()), "a pod is still running");
    server.stop_pods();
    assert!(server.get(&sample).is_none());
    assert!(server.get(&key("ServiceAccount", "default")).is_none());
}

#[test]
fn what_was_given_no_address_shares_one_where_its_ports_are_free() {
    let server = server();
    let balanced = |name: &str, port: u16| {
        let labels = json!({"gateway.networking.k8s.io/gateway-name": "other"});
        let spec = json!({"type": "LoadBalancer", "ports": [{"port": port}]});
        server.create(
            "Service",
            Some("sample"),
            json!({"metadata": {"name": name, "labels": labels}, "spec": spec}),
        )
    };
    let gateway = json!({"metadata": {"name": "other"}, "spec": {"gatewayClassName": "istio-waypoint"}});
    server.create("Gateway", Some("sample"), gateway).unwrap();
    let ip = |name: &str| {
        let service = server.get(&key("Service", name)).unwrap();
        object::text(&service, "/status/loadBalancer/ingress/0/ip").to_owned()
    };
    balanced("other", 30443).unwrap();
    assert_eq!(ip("other"), "192.168.97.1");
    let gateway = server.get(&key("Gateway", "other")).unwrap();
    assert_eq!(object::text(&gateway, "/status/addresses/0/value"), "192.168.97.1");
    let served = json!({"metadata": {"name": "served"}, "spec": {"gatewayClassName": "istio-east-west",
        "addresses": [{"type": "IPAddress", "value": "192.168.97.2"}]}});
    let served = server.create("Gateway", Some("sample"), served).unwrap();
    assert!(served.get("status").is_none(), "its pods write its status");
    balanced("third", 30443).unwrap();
    assert_eq!((ip("other").as_str(), ip("third").as_str()), ("192.168.97.1", ""));
    // The Service that has the address has its ports, whichever was created first.
    balanced("gw", 30443).unwrap();
    assert_eq!((ip("gw").as_str(), ip("other").as_str()), ("192.168.97.1", ""));
}
