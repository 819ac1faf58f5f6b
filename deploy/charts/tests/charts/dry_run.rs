//! Everything that the charts render, offered to a real API server: it checks every field and changes nothing.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::api_server::ApiServer;
use crate::helm::{CASES, case};

/// Where the API serves a kind.
const KINDS: [(&str, &str, &str); 12] = [
    ("ServiceAccount", "/api/v1", "serviceaccounts"),
    ("Service", "/api/v1", "services"),
    ("ResourceQuota", "/api/v1", "resourcequotas"),
    ("DaemonSet", "/apis/apps/v1", "daemonsets"),
    ("Deployment", "/apis/apps/v1", "deployments"),
    ("NetworkPolicy", "/apis/networking.k8s.io/v1", "networkpolicies"),
    ("Role", "/apis/rbac.authorization.k8s.io/v1", "roles"),
    ("RoleBinding", "/apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    ("ClusterRole", "/apis/rbac.authorization.k8s.io/v1", "clusterroles"),
    ("ClusterRoleBinding", "/apis/rbac.authorization.k8s.io/v1", "clusterrolebindings"),
    ("HorizontalPodAutoscaler", "/apis/autoscaling/v2", "horizontalpodautoscalers"),
    ("PodDisruptionBudget", "/apis/policy/v1", "poddisruptionbudgets"),
];

/// Kinds of operators that an API server does not have by itself: their definitions would have to be installed.
const FOREIGN: [&str; 5] =
    ["Gateway", "GatewayClass", "NetworkAttachmentDefinition", "PodMonitor", "TLSRoute"];

#[test]
fn an_api_server_accepts_every_object() {
    let server = ApiServer::start().unwrap();
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"}});
    let created =
        server.ask("POST", "/api/v1/namespaces", "application/json", &namespace.to_string()).unwrap();
    assert_eq!(created.0, 201, "{}", created.1);
    let (mut accepted, mut foreign) = (0, BTreeSet::new());
    for (chart, name, release) in CASES {
        for object in objects(&case(chart, name, release)).unwrap() {
            let kind = object["kind"].as_str().unwrap().to_owned();
            if FOREIGN.contains(&kind.as_str()) {
                foreign.insert(kind);
                continue;
            }
            offer(&server, &object).with_context(|| format!("{chart} {name}")).unwrap();
            accepted += 1;
        }
    }
    println!("{accepted} objects accepted; not offered: {foreign:?}");
    assert_eq!(foreign, FOREIGN.map(str::to_owned).into(), "a kind of the list is rendered by no case");
    assert!(accepted > 60, "{accepted}");
    control(&server);
}

/// The check finds a field that does not exist, and a value that is not valid.
fn control(server: &ApiServer) {
    let text = case("agent", "default", "ztunnel");
    for (from, to) in [("readOnlyRootFilesystem", "readOnlyRootFileSystem"), ("drop: [ALL]", "drop: ALL")] {
        let broken = text.replace(from, to);
        assert_ne!(broken, text);
        let all = objects(&broken).expect("objects");
        let daemon_set = all.into_iter().find(|one| one["kind"] == "DaemonSet").expect("a DaemonSet");
        assert!(offer(server, &daemon_set).is_err(), "{to} is accepted");
    }
}

fn objects(text: &str) -> Result<Vec<Value>> {
    let all = yaml_serde::Deserializer::from_str(text).map(|document| Ok(Value::deserialize(document)?));
    all.filter(|value: &Result<Value>| !matches!(value, Ok(Value::Null))).collect()
}

fn offer(server: &ApiServer, object: &Value) -> Result<()> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let kind = text(&object["kind"]).context("no kind")?;
    let name = text(&object["metadata"]["name"]).context("no name")?;
    let (_, api, plural) = KINDS.into_iter().find(|row| row.0 == kind).context(kind.clone())?;
    ensure!(api.ends_with(&text(&object["apiVersion"]).context("no version")?), "{kind}: not of {api}");
    let folder = text(&object["metadata"]["namespace"]).map(|namespace| format!("/namespaces/{namespace}"));
    let path = format!(
        "{api}{}/{plural}/{name}?fieldManager=charts&dryRun=All&fieldValidation=Strict",
        folder.unwrap_or_default()
    );
    let (status, answer) = server.ask("PATCH", &path, "application/apply-patch+yaml", &object.to_string())?;
    ensure!(matches!(status, 200 | 201), "{kind} {name}: {status}, {answer}");
    Ok(())
}
