//! `policies` of the dump: rules as list of list of list of matches, string matches as one-key objects.

use isthmus_model::policy::{AccountMatch, Match, StringMatch};
use isthmus_model::{Action, Policy, Scope};
use serde_json::{Map, Value, json};

/// One policy.
pub(super) fn one(policy: &Policy) -> Value {
    let rules: Value = policy
        .rules
        .iter()
        .map(|clauses| {
            clauses.iter().map(|matches| matches.iter().map(matcher).collect::<Value>()).collect::<Value>()
        })
        .collect();
    json!({
        "name": policy.name.as_str(),
        "namespace": policy.namespace.as_str(),
        "scope": match policy.scope {
            Scope::Global => "Global",
            Scope::Namespace => "Namespace",
            Scope::WorkloadSelector => "WorkloadSelector",
        },
        "action": match policy.action {
            Action::Allow => "Allow",
            Action::Deny => "Deny",
        },
        "rules": rules,
        "dryRun": policy.dry_run,
    })
}

fn matcher(m: &Match) -> Value {
    let mut object = Map::new();
    let mut put = |key: &str, values: Vec<Value>| {
        if !values.is_empty() {
            object.insert(key.to_owned(), values.into());
        }
    };
    let texts = |matches: &[StringMatch]| matches.iter().map(text).collect::<Vec<_>>();
    let accounts = |matches: &[AccountMatch]| matches.iter().map(account).collect::<Vec<_>>();
    let nets =
        |nets: &[_]| nets.iter().map(|net: &ipnet::IpNet| net.to_string().into()).collect::<Vec<Value>>();
    let numbers = |ports: &[u16]| ports.iter().map(|port| (*port).into()).collect::<Vec<Value>>();
    put("namespaces", texts(&m.namespaces));
    put("notNamespaces", texts(&m.not_namespaces));
    put("serviceAccounts", accounts(&m.service_accounts));
    put("notServiceAccounts", accounts(&m.not_service_accounts));
    put("principals", texts(&m.principals));
    put("notPrincipals", texts(&m.not_principals));
    put("sourceIps", nets(&m.source_ips));
    put("notSourceIps", nets(&m.not_source_ips));
    put("destinationIps", nets(&m.destination_ips));
    put("notDestinationIps", nets(&m.not_destination_ips));
    put("destinationPorts", numbers(&m.destination_ports));
    put("notDestinationPorts", numbers(&m.not_destination_ports));
    Value::Object(object)
}

fn text(m: &StringMatch) -> Value {
    match m {
        StringMatch::Exact(text) => json!({"Exact": text.as_str()}),
        StringMatch::Prefix(text) => json!({"Prefix": text.as_str()}),
        StringMatch::Suffix(text) => json!({"Suffix": text.as_str()}),
        StringMatch::Presence => json!({"Presence": []}),
    }
}

fn account(m: &AccountMatch) -> Value {
    json!({"namespace": m.namespace.as_str(), "serviceAccount": m.service_account.as_str()})
}
