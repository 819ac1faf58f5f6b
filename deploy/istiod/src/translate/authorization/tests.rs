//! Policies against what the reference control plane makes of them, and what is refused.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize as _;
use serde_json::{Map, json};

use super::*;
use crate::translate::peer_authentication::PeerAuthentications;

fn mesh(root_namespace: &str) -> Mesh {
    Mesh {
        trust_domain: "cluster.local".to_owned(),
        aliases: Vec::new(),
        root_namespace: root_namespace.to_owned(),
        domain: "cluster.local".to_owned(),
        scopes: Vec::new(),
    }
}

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../agent/state/testdata/authorization").join(name)
}

fn documents(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let documents = yaml_serde::Deserializer::from_str(&text).map(|one| Value::deserialize(one).unwrap());
    documents.filter(|value| !value.is_null()).collect()
}

/// A resource in the reference's YAML: groups of rules of matches, empty fields left out.
fn shown(resource: &Authorization) -> Value {
    let groups: Vec<Value> = resource
        .rules
        .iter()
        .map(|rule| json!({"rules": rule.clauses.iter().map(shown_clause).collect::<Vec<_>>()}))
        .collect();
    let mut out = json!({"name": resource.name, "groups": groups});
    if !resource.namespace.is_empty() {
        out["namespace"] = resource.namespace.clone().into();
    }
    if resource.action() == Action::Deny {
        out["action"] = "DENY".into();
    }
    match resource.scope() {
        Scope::Global => {}
        Scope::Namespace => out["scope"] = "NAMESPACE".into(),
        Scope::WorkloadSelector => out["scope"] = "WORKLOAD_SELECTOR".into(),
    }
    out
}

fn shown_clause(clause: &Clause) -> Value {
    json!({"matches": clause.matches.iter().map(shown_match).collect::<Vec<_>>()})
}

fn shown_match(one: &Match) -> Value {
    let strings = |values: &[StringMatch]| -> Vec<Value> {
        let shown = |value: &StringMatch| match value.match_type.clone().unwrap() {
            MatchType::Exact(text) => json!({"exact": text}),
            MatchType::Prefix(text) => json!({"prefix": text}),
            MatchType::Suffix(text) => json!({"suffix": text}),
            MatchType::Presence(_) => json!({"presence": {}}),
        };
        values.iter().map(shown).collect()
    };
    let blocks = |values: &[Address]| -> Vec<Value> {
        let base64 = base64::engine::general_purpose::STANDARD;
        values
            .iter()
            .map(|one| json!({"address": base64.encode(&one.address), "length": one.length}))
            .collect()
    };
    let accounts = |values: &[ServiceAccountMatch]| -> Vec<Value> {
        values
            .iter()
            .map(|one| json!({"namespace": one.namespace, "serviceAccount": one.service_account}))
            .collect()
    };
    let ports = |values: &[u32]| values.iter().map(|port| json!(port)).collect();
    let mut out = Map::new();
    for (name, values) in [
        ("principals", strings(&one.principals)),
        ("notPrincipals", strings(&one.not_principals)),
        ("namespaces", strings(&one.namespaces)),
        ("notNamespaces", strings(&one.not_namespaces)),
        ("serviceAccounts", accounts(&one.service_accounts)),
        ("notServiceAccounts", accounts(&one.not_service_accounts)),
        ("sourceIps", blocks(&one.source_ips)),
        ("notSourceIps", blocks(&one.not_source_ips)),
        ("destinationIps", blocks(&one.destination_ips)),
        ("notDestinationIps", blocks(&one.not_destination_ips)),
        ("destinationPorts", ports(&one.destination_ports)),
        ("notDestinationPorts", ports(&one.not_destination_ports)),
    ] {
        if !values.is_empty() {
            out.insert(name.to_owned(), Value::Array(values));
        }
    }
    Value::Object(out)
}

/// Clauses of a rule must all hold, so their order means nothing.
fn unordered(mut value: Value) -> Value {
    for group in value["groups"].as_array_mut().into_iter().flatten() {
        group["rules"].as_array_mut().unwrap().sort_by_key(ToString::to_string);
    }
    value
}

/// Stems of the reference's pairs: all of PeerAuthentication, or all of AuthorizationPolicy.
fn pairs(peer_authentication: bool) -> Vec<String> {
    let entries = std::fs::read_dir(testdata("")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let stems = names.filter_map(|name| name.strip_suffix("-in.yaml").map(str::to_owned));
    stems.filter(|stem| stem.starts_with("peer-authn") == peer_authentication).collect()
}

#[test]
fn policies_become_what_the_reference_makes_of_them() {
    let stems = pairs(false);
    assert_eq!(stems.len(), 3);
    for stem in stems {
        let policy = documents(&testdata(&format!("{stem}-in.yaml"))).remove(0);
        let resource = translate(&policy, &mesh("istio-system")).unwrap().unwrap();
        assert_eq!(shown(&resource), documents(&testdata(&format!("{stem}.yaml")))[0], "{stem}");
    }
}

#[test]
fn peer_authentications_become_what_the_reference_makes_of_them() {
    let stems = pairs(true);
    assert_eq!(stems.len(), 19);
    for stem in stems {
        let policies = documents(&testdata(&format!("{stem}-in.yaml")));
        let made = PeerAuthentications::new(policies.iter(), "istio-system").resources();
        let made: Vec<Value> = made
            .iter()
            .filter(|resource| resource.name != "istio_converted_static_strict")
            .map(|resource| unordered(shown(resource)))
            .collect();
        let wanted: Vec<Value> =
            documents(&testdata(&format!("{stem}.yaml"))).into_iter().map(unordered).collect();
        assert_eq!(made, wanted, "{stem}");
    }
}

#[test]
fn a_workload_is_bound_by_the_nearest_mode() {
    let policy = |name: &str, namespace: &str, spec: Value| json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec});
    let app = json!({"matchLabels": {"app": "a"}});
    let policies = [
        policy("mesh", "root", json!({"mtls": {"mode": "STRICT"}})),
        policy("open", "lax", json!({"mtls": {"mode": "PERMISSIVE"}})),
        policy("one", "b", json!({"selector": app, "mtls": {"mode": "DISABLE"}})),
        policy("ports", "c", json!({"selector": app, "portLevelMtls": {"80": {"mode": "PERMISSIVE"}}})),
    ];
    let all = PeerAuthentications::new(policies.iter(), "root");
    let bound = |namespace: &str, app: &str| {
        all.names_for(&json!({"metadata": {"namespace": namespace, "labels": {"app": app}}}))
    };
    let strict = Some("root/istio_converted_static_strict".to_owned());
    assert_eq!(bound("any", "a"), strict);
    assert_eq!(bound("lax", "a"), None);
    assert_eq!(bound("b", "a"), None);
    assert_eq!(bound("b", "z"), strict);
    assert_eq!(bound("c", "a").as_deref(), Some("c/converted_peer_authentication_ports"));
}

#[test]
fn scope_and_action_follow_the_policy() {
    let policy = |namespace: &str, spec: Value| {
        let policy = json!({"metadata": {"name": "p", "namespace": namespace}, "spec": spec});
        translate(&policy, &mesh("root")).unwrap().map(|made| (made.scope(), made.action(), made.rules.len()))
    };
    let selector = json!({"matchLabels": {"app": "a"}});
    assert_eq!(policy("a", json!({})), Some((Scope::Namespace, Action::Allow, 0)));
    assert_eq!(policy("root", json!({"rules": [{}]})), Some((Scope::Global, Action::Allow, 1)));
    let denied = policy("a", json!({"selector": selector, "action": "DENY"}));
    assert_eq!(denied, Some((Scope::WorkloadSelector, Action::Deny, 0)));
    assert_eq!(policy("a", json!({"action": "AUDIT"})), None);
    assert_eq!(policy("a", json!({"targetRefs": [{"kind": "Service", "name": "s"}]})), None);
}

#[test]
fn http_allows_nothing_and_denies_by_the_rest() {
    let rules = json!([{"to": [{"operation": {"methods": ["GET"], "ports": ["80"]}}]}]);
    let made = |action: &str| {
        let policy =
            json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"action": action, "rules": rules}});
        translate(&policy, &mesh("root")).unwrap().unwrap().rules
    };
    assert!(made("ALLOW").is_empty());
    assert_eq!(made("DENY")[0].clauses[0].matches[0].destination_ports, [80]);
}

#[test]
fn what_is_wrong_is_named() {
    let mut outcome = String::new();
    for rule in [
        json!({"from": [{"source": {"ipBlocks": ["10.0.0"]}}]}),
        json!({"to": [{"operation": {"ports": ["http"]}}]}),
        json!({"from": [{"source": {"principal": ["x"]}}]}),
        json!({"from": {"source": {}}}),
        json!({"when": [{"key": "source.ip", "notValues": ["x"]}]}),
        json!({"from": [{"source": {"serviceAccounts": ["a/b/c"]}}]}),
    ] {
        let policy = json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"rules": [rule]}});
        writeln!(outcome, "{}", translate(&policy, &mesh("root")).unwrap_err()).unwrap();
    }
    assert_eq!(
        outcome,
        "spec.rules[0].from[0].source.ipBlocks: \"10.0.0\" is no address and no CIDR block\n\
         spec.rules[0].to[0].operation.ports: \"http\" is no port\n\
         spec.rules[0].from[0].source.principal: is no known field\n\
         spec.rules[0].from: is no list\n\
         spec.rules[0].when[0].notValues: \"x\" is no address and no CIDR block\n\
         spec.rules[0].from[0].source.serviceAccounts: \"a/b/c\" is not NAMESPACE/ACCOUNT or ACCOUNT\n"
    );
}
