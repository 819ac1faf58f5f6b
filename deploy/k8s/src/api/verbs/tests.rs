//! The rules of writing.

use serde_json::json;

use super::*;
use crate::api::admission::Invalid;
use crate::api::fixture::{kind, server};
use crate::api::test_server::key;

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c"}]}})
}

#[test]
fn a_new_object_gets_what_the_server_gives() {
    let server = server();
    let made = server.create("Pod", Some("sample"), pod("p")).unwrap();
    assert_eq!((object::text(&made, "/kind"), object::text(&made, "/apiVersion")), ("Pod", "v1"));
    assert_eq!(object::namespace(&made), "sample");
    assert_eq!(object::text(&made, "/spec/serviceAccountName"), "default");
    assert_eq!(object::text(&made, "/status/phase"), "Pending");
    assert_eq!(object::uid(&made).len(), 36);
    assert!(object::text(&made, "/metadata/creationTimestamp").ends_with('Z'));
    let generated = server.create(
        "Pod",
        Some("sample"),
        json!({"metadata": {"generateName": "x-"}, "spec": pod("")["spec"]}),
    );
    assert!(object::name(&generated.unwrap()).starts_with("x-"));
}

#[test]
fn what_is_wrong_is_refused_with_its_reason() {
    let mut server = server();
    server.create("Pod", Some("sample"), pod("p")).unwrap();
    for (namespace, object, says) in [
        ("sample", pod("p"), "pods \"p\" already exists"),
        ("nowhere", pod("p"), "namespaces \"nowhere\" not found"),
        ("sample", pod("Bad_Name"), "Pod \"Bad_Name\" is invalid: metadata.name: is no lower-case DNS name"),
        (
            "sample",
            json!({"kind": "Service", "metadata": {"name": "x"}}),
            "kind is \"Service\", the path is for \"Pod\"",
        ),
        (
            "sample",
            json!({"metadata": {"name": "x", "namespace": "y"}}),
            "metadata.namespace is \"y\", the path is for \"sample\"",
        ),
        (
            "sample",
            json!({"metadata": {"name": "x"}, "spec": {}}),
            "Pod \"x\" is invalid: spec.containers: at least one container, each with a name, is required",
        ),
        (
            "sample",
            json!({"metadata": {"name": "x"}, "spec": {"serviceAccountName": "no", "containers": [{"name": "c"}]}}),
            "pods \"x\" is forbidden: serviceaccount sample/no was not found",
        ),
        ("sample", json!([]), "the body is no object"),
    ] {
        assert_eq!(server.create("Pod", Some(namespace), object).unwrap_err().to_string(), says);
    }
    server.admission.webhook = |kind, object| {
        assert_eq!((kind.kind, object::name(object)), ("AuthorizationPolicy", "x"));
        Err(Invalid { field: "spec.action".to_owned(), problem: "is unknown".to_owned() })
    };
    let policy = json!({"metadata": {"name": "x"}, "spec": {"action": "MAYBE"}});
    let error = server.create("AuthorizationPolicy", Some("sample"), policy).unwrap_err();
    assert_eq!(error.to_string(), "AuthorizationPolicy \"x\" is invalid: spec.action: is unknown");
}

#[test]
fn each_part_is_changed_through_its_own_path() {
    let server = server();
    server.create("Pod", Some("sample"), pod("p")).unwrap();
    let patch = json!({
        "metadata": {"annotations": {"a": "b"}},
        "spec": {"hostNetwork": true},
        "status": {"phase": "Running"},
    });
    let changed = server.patch(&key("Pod", "p"), Part::Status, &patch).unwrap();
    assert_eq!(
        (object::annotation(&changed, "a"), object::text(&changed, "/status/phase")),
        (Some("b"), "Running")
    );
    assert_eq!(changed["spec"].get("hostNetwork"), None);
    let patch =
        json!({"metadata": {"annotations": {"a": null}}, "spec": {"hostNetwork": true}, "status": null});
    let changed = server.patch(&key("Pod", "p"), Part::Main, &patch).unwrap();
    assert_eq!(
        (object::annotation(&changed, "a"), object::text(&changed, "/status/phase")),
        (None, "Running")
    );
    assert_eq!(changed["spec"]["hostNetwork"], true);
    assert_eq!(changed["metadata"]["generation"], 2);
}

#[test]
fn an_old_version_is_a_conflict_and_no_change_is_none() {
    let server = server();
    let first = server.create("Pod", Some("sample"), pod("p")).unwrap();
    let patch = json!({"metadata": {"labels": {"a": "b"}}});
    let second = server.patch(&key("Pod", "p"), Part::Main, &patch).unwrap();
    assert_eq!(server.patch(&key("Pod", "p"), Part::Main, &patch).unwrap(), second);
    let replace = |object: Value| {
        server.change(|tx, context| replace(tx, context, &key("Pod", "p"), Part::Main, object))
    };
    assert!(matches!(replace(first), Err(Error::Conflict(..))));
    assert!(replace(second).is_ok());
}

#[test]
fn a_scheduled_pod_is_deleted_in_two_steps() {
    let server = server();
    server.create("Pod", Some("sample"), pod("p")).unwrap();
    let marked = server.delete(&key("Pod", "p"), None).unwrap();
    assert!(object::is_deleting(&marked));
    let again = server.delete(&key("Pod", "p"), None).unwrap();
    assert_eq!(marked, again);
    server.delete(&key("Pod", "p"), Some(0)).unwrap();
    assert!(server.get(&key("Pod", "p")).is_none());
    assert!(matches!(server.delete(&key("Pod", "p"), None), Err(Error::NotFound(..))));
}

#[test]
fn services_get_addresses_and_keep_them() {
    let server = server();
    let service = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
    let ip = |object: &Value| object::text(object, "/spec/clusterIP").to_owned();
    let made =
        server.create("Service", Some("sample"), service("a", json!({"ports": [{"port": 80}]}))).unwrap();
    assert!(ip(&made).starts_with("172.21."));
    assert_eq!(
        (&made["spec"]["ports"][0]["targetPort"], &made["spec"]["ports"][0]["protocol"]),
        (&80.into(), &"TCP".into())
    );
    let fixed =
        server.create("Service", Some("sample"), service("b", json!({"clusterIP": "172.21.0.10"}))).unwrap();
    assert_eq!(ip(&fixed), "172.21.0.10");
    let headless =
        server.create("Service", Some("sample"), service("c", json!({"clusterIP": "None"}))).unwrap();
    assert_eq!(ip(&headless), "None");
    for (wanted, says) in
        [("172.21.0.10", "already allocated"), ("10.0.0.1", "is no address of 172.21.0.0/16")]
    {
        let error =
            server.create("Service", Some("sample"), service("d", json!({"clusterIP": wanted}))).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
    let patched =
        server.patch(&key("Service", "a"), Part::Main, &json!({"spec": {"clusterIP": null}})).unwrap();
    assert_eq!(ip(&patched), ip(&made));
    let error =
        server.patch(&key("Service", "a"), Part::Main, &json!({"spec": {"clusterIP": "172.21.0.11"}}));
    assert!(error.unwrap_err().to_string().contains("immutable"));
}

#[test]
fn merging_removes_what_is_null() {
    let mut target = json!({"a": {"b": 1, "c": 2}, "d": [1]});
    merge(&mut target, &json!({"a": {"b": null}, "d": [2], "e": {"f": null, "g": 1}}));
    assert_eq!(target, json!({"a": {"c": 2}, "d": [2], "e": {"g": 1}}));
    assert_eq!(kind("Pod").plural, "pods");
}
