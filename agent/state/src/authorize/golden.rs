//! What the control plane makes of real policies, judged: the resources are the golden ones that the playground's
//! istiod is held to.

use base64::Engine as _;
use isthmus_model::policy::{AccountMatch, Match, StringMatch};
use isthmus_model::{Scope, SpiffeId};
use serde_json::Value;

use super::*;
use crate::Batch;
use crate::fixture::{pod, snapshot};

/// The one resource in a golden file; `None` when there is none.
fn resource(name: &str) -> Option<Policy> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/authorization");
    let text = std::fs::read_to_string(format!("{folder}/{name}.yaml")).unwrap();
    (!text.trim().is_empty()).then(|| policy(&yaml_serde::from_str(&text).unwrap()))
}

fn policy(value: &Value) -> Policy {
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let matches = |rule: &Value| list(&rule["matches"], one);
    Policy {
        name: text("name").into(),
        namespace: text("namespace").into(),
        scope: match text("scope").as_str() {
            "NAMESPACE" => Scope::Namespace,
            "WORKLOAD_SELECTOR" => Scope::WorkloadSelector,
            other => panic!("scope {other:?}"),
        },
        action: if text("action") == "DENY" { Action::Deny } else { Action::Allow },
        rules: list(&value["groups"], |group| list(&group["rules"], matches)),
        dry_run: false,
    }
}

fn list<T>(value: &Value, read: impl FnMut(&Value) -> T) -> Vec<T> {
    value.as_array().into_iter().flatten().map(read).collect()
}

fn one(value: &Value) -> Match {
    const KNOWN: [&str; 12] = [
        "namespaces",
        "notNamespaces",
        "serviceAccounts",
        "notServiceAccounts",
        "principals",
        "notPrincipals",
        "sourceIps",
        "notSourceIps",
        "destinationIps",
        "notDestinationIps",
        "destinationPorts",
        "notDestinationPorts",
    ];
    assert!(value.as_object().unwrap().keys().all(|key| KNOWN.contains(&key.as_str())), "{value}");
    let texts = |key: &str| list(&value[key], string);
    let accounts = |key: &str| list(&value[key], account);
    let ranges = |key: &str| list(&value[key], range);
    let ports = |key: &str| list(&value[key], |port| u16::try_from(port.as_u64().unwrap()).unwrap());
    Match {
        namespaces: texts("namespaces"),
        not_namespaces: texts("notNamespaces"),
        service_accounts: accounts("serviceAccounts"),
        not_service_accounts: accounts("notServiceAccounts"),
        principals: texts("principals"),
        not_principals: texts("notPrincipals"),
        source_ips: ranges("sourceIps"),
        not_source_ips: ranges("notSourceIps"),
        destination_ips: ranges("destinationIps"),
        not_destination_ips: ranges("notDestinationIps"),
        destination_ports: ports("destinationPorts"),
        not_destination_ports: ports("notDestinationPorts"),
    }
}

fn string(value: &Value) -> StringMatch {
    let (kind, text) = value.as_object().unwrap().iter().next().unwrap();
    let text = || text.as_str().unwrap().into();
    match kind.as_str() {
        "exact" => StringMatch::Exact(text()),
        "prefix" => StringMatch::Prefix(text()),
        "suffix" => StringMatch::Suffix(text()),
        "presence" => StringMatch::Presence,
        other => panic!("{other}"),
    }
}

fn account(value: &Value) -> AccountMatch {
    let text = |key: &str| value[key].as_str().unwrap();
    AccountMatch { namespace: text("namespace").into(), service_account: text("serviceAccount").into() }
}

fn range(value: &Value) -> ipnet::IpNet {
    let bytes = base64::engine::general_purpose::STANDARD.decode(value["address"].as_str().unwrap()).unwrap();
    let address = <[u8; 4]>::try_from(bytes.as_slice()).unwrap();
    format!("{}/{}", std::net::Ipv4Addr::from(address), value["length"]).parse().unwrap()
}

/// Whether a connection to a workload that the policy applies to goes through.
fn allowed(policy: &Policy, peer: Option<&str>, source: &str, destination: &str) -> bool {
    let mut state = snapshot(&[], &[]);
    state.apply(Batch { upsert_policies: vec![(policy.key(), policy.clone())], ..Batch::default() });
    let mut workload = pod("a", "10.0.0.1");
    workload.namespace = policy.namespace.clone();
    if policy.scope == Scope::WorkloadSelector {
        workload.authorization_policies = vec![policy.key()];
    }
    let facts = Facts {
        peer: peer.map(|text| text.parse::<SpiffeId>().unwrap()),
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
    };
    authorize(&state, &workload, &facts).is_ok()
}

#[test]
fn a_policy_with_every_dimension_allows_what_one_rule_matches() {
    let policy = resource("allow-full").unwrap();
    assert_eq!(policy.rules.len(), 10);
    let (anonymous, stranger) = (None, Some("spiffe://td/ns/other/sa/other"));
    let (anywhere, here) = ("172.16.0.1", "10.0.0.1:1");
    for (peer, source, destination, want) in [
        (anonymous, anywhere, here, false),
        (stranger, anywhere, here, false),
        // A value that a rule both demands and forbids, presence included, matches no peer.
        (Some("spiffe://principal/ns/ns/sa/x"), anywhere, here, false),
        (Some("spiffe://td/ns/ns/sa/other"), anywhere, here, false),
        (Some("spiffe://td/ns/ns-prefix-1/sa/other"), anywhere, here, false),
        // An account with its namespace, and one without: it is the policy's own namespace.
        (Some("spiffe://td/ns/ns/sa/sa"), anywhere, here, true),
        (Some("spiffe://td/ns/cfg/sa/sa-only"), anywhere, here, true),
        (Some("spiffe://td/ns/ns/sa/sa-only"), anywhere, here, false),
        (Some("spiffe://td/ns/ns/sa/sa-not"), anywhere, here, false),
        // Source ranges, of `ipBlocks` and of `source.ip`.
        (anonymous, "1.2.3.4", here, true),
        (anonymous, "1.2.3.5", here, false),
        (anonymous, "5.6.255.255", here, true),
        (anonymous, "2.2.3.4", here, false),
        (anonymous, "10.10.10.10", here, true),
        (anonymous, "192.168.10.7", here, true),
        (anonymous, "192.168.11.7", here, false),
        (anonymous, "90.168.10.1", here, false),
        (anonymous, "::ffff:1.2.3.4", here, true),
        (anonymous, "fd00::1", here, false),
        // Destinations.
        (anonymous, anywhere, "10.10.10.10:1", true),
        (anonymous, anywhere, "192.168.10.255:1", true),
        (anonymous, anywhere, "90.10.10.10:1", false),
        // Ports, of `ports` and of `destination.port`.
        (anonymous, anywhere, "10.0.0.1:80", true),
        (anonymous, anywhere, "10.0.0.1:90", true),
        (anonymous, anywhere, "10.0.0.1:91", true),
        (anonymous, anywhere, "10.0.0.1:92", true),
        (anonymous, anywhere, "10.0.0.1:800", false),
        (anonymous, anywhere, "10.0.0.1:9001", false),
    ] {
        assert_eq!(allowed(&policy, peer, source, destination), want, "{peer:?} {source} → {destination}");
    }
}

#[test]
fn what_is_left_of_a_policy_with_http_widens_nothing() {
    let (allow, deny) = (resource("allow-groups").unwrap(), resource("deny-groups").unwrap());
    // The attributes of HTTP are unknown here: a rule with one must not allow, and what remains of a denial denies.
    for (peer, source, port, is_allowed, is_denied) in [
        ("spiffe://td/ns/when-l4-ns/sa/x", "10.10.10.10", 81, true, true),
        ("spiffe://td/ns/when-l4-ns/sa/x", "10.10.10.11", 81, false, false),
        ("spiffe://td/ns/when-l4-l7-ns/sa/x", "10.10.10.10", 81, false, false),
        ("spiffe://td/ns/from-mix-ns/sa/x", "10.10.10.10", 80, false, false),
        ("spiffe://td/ns/any/sa/x", "10.10.10.10", 80, false, false),
    ] {
        let (peer, to) = (Some(peer), format!("10.0.0.1:{port}"));
        assert_eq!(allowed(&allow, peer, source, &to), is_allowed, "ALLOW: {peer:?} {source} → {to}");
        assert_eq!(!allowed(&deny, peer, source, &to), is_denied, "DENY: {peer:?} {source} → {to}");
    }
}

#[test]
fn peer_authentication_denies_plaintext_on_its_ports() {
    // Whether plaintext passes to 8080, to 9090, to another port. Without a resource of its own, the whole workload is
    // judged by the static policy, which has another name.
    let judged = [
        ("peer-authn-disable", None),
        ("peer-authn-disable-port-mtls-strict", Some([true, false, true])),
        ("peer-authn-permissive", None),
        ("peer-authn-permissive-port-mtls-strict", Some([true, false, true])),
        ("peer-authn-permissive-port-mtls-strict-and-permissive", Some([true, false, true])),
        ("peer-authn-permissive-root-permissive-namespace-strict-workload-ports", Some([false, false, true])),
        ("peer-authn-permissive-root-permissive-workload", None),
        ("peer-authn-permissive-root-strict-namespace-permissive-workload", Some([false, true, false])),
        ("peer-authn-permissive-root-unset-namespace-mixed-workload-ports", Some([true, false, true])),
        ("peer-authn-strict", None),
        ("peer-authn-strict-and-disable-port-mtls", Some([false, true, false])),
        ("peer-authn-strict-and-permissive-port-mtls", Some([false, true, false])),
        ("peer-authn-strict-and-strict-port-mtls", None),
        ("peer-authn-strict-port-mtls-strict-and-permissive", Some([true, false, false])),
        ("peer-authn-strict-root-permissive-namespace-strict-workload", Some([true, false, true])),
        ("peer-authn-strict-root-permissive-workload", Some([false, true, false])),
        ("peer-authn-strict-root-unset-workload-port-mtls-strict-and-permissive", Some([false, true, false])),
        ("peer-authn-strict-workload", None),
        ("peer-authn-unset-port-mtls-strict", Some([false, true, true])),
    ];
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/authorization");
    let names = std::fs::read_dir(folder).unwrap().map(|one| one.unwrap().file_name().into_string().unwrap());
    let golden = names.filter(|name| name.starts_with("peer-authn") && !name.ends_with("-in.yaml")).count();
    assert_eq!(judged.len(), golden);
    for (name, plaintext) in judged {
        let policy = resource(name);
        assert_eq!(policy.is_some(), plaintext.is_some(), "{name}");
        let (Some(policy), Some(plaintext)) = (policy, plaintext) else { continue };
        assert_eq!(policy.action, Action::Deny, "{name}");
        for (port, want) in [8080, 9090, 7070].into_iter().zip(plaintext) {
            let to = format!("10.0.0.1:{port}");
            assert_eq!(allowed(&policy, None, "10.0.0.9", &to), want, "{name}: plaintext to {port}");
            let peer = Some("spiffe://td/ns/foo/sa/a");
            assert!(allowed(&policy, peer, "10.0.0.9", &to), "{name}: mutual TLS to {port}");
        }
    }
}
