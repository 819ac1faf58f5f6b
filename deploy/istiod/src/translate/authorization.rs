//! AuthorizationPolicy → `istio.security.Authorization`: what of a policy the node agents enforce. Attributes of HTTP are
//! not theirs: a rule with one allows nothing, and a denial with one denies by what is left of it. Pure.

use ipnet::IpNet;
use isthmus_proto::security::{
    Action, Address, Authorization, Clause, Match, Presence, Rule, Scope, ServiceAccountMatch, StringMatch,
    string_match::MatchType,
};
use serde_json::Value;

use crate::translate::mesh_config::Mesh;
use playground_k8s::api::Invalid;
use playground_k8s::manifest::object;

/// The policy as node agents take it; nothing when it is not for them (it has `targetRefs`, or another action).
///
/// # Errors
/// When a field is wrong.
pub(crate) fn translate(policy: &Value, mesh: &Mesh) -> Result<Option<Authorization>, Invalid> {
    let namespace = object::namespace(policy);
    let action = match object::text(policy, "/spec/action") {
        "" | "ALLOW" => Action::Allow,
        "DENY" => Action::Deny,
        "AUDIT" | "CUSTOM" => return Ok(None),
        other => {
            return Err(invalid("spec.action", format!("{other:?} is not ALLOW, DENY, AUDIT or CUSTOM")));
        }
    };
    let is_attached = !object::list(policy, "/spec/targetRefs").is_empty()
        || policy.pointer("/spec/targetRef").is_some_and(Value::is_object);
    let rules =
        policy.pointer("/spec/rules").map_or(Some(&[][..]), |rules| rules.as_array().map(Vec::as_slice));
    let rules = rules.ok_or_else(|| invalid("spec.rules", "is no list"))?;
    let mut groups = Vec::new();
    for (at, rule) in rules.iter().enumerate() {
        let reader = Reader { mesh, namespace, at: format!("spec.rules[{at}]") };
        groups.extend(reader.rule(rule, action)?);
    }
    if is_attached {
        return Ok(None);
    }
    let scope = if has_selector(policy) {
        Scope::WorkloadSelector
    } else if namespace == mesh.root_namespace {
        Scope::Global
    } else {
        Scope::Namespace
    };
    Ok(Some(Authorization {
        name: object::name(policy).to_owned(),
        namespace: namespace.to_owned(),
        scope: scope.into(),
        action: action.into(),
        rules: groups,
        dry_run: object::annotation(policy, "istio.io/dry-run") == Some("true"),
        extensions: Vec::new(),
    }))
}

/// Whether a policy chooses workloads by labels.
pub(crate) fn has_selector(policy: &Value) -> bool {
    !object::string_map(policy, "/spec/selector/matchLabels").is_empty()
}

/// A match on any peer that has proved its identity.
pub(crate) fn any_string() -> StringMatch {
    string("*")
}

/// One rule of a policy being read.
struct Reader<'a> {
    mesh: &'a Mesh,
    namespace: &'a str,
    /// Where in the policy, for errors.
    at: String,
}

/// The lists of a source or an operation that node agents cannot judge.
const HTTP_SOURCE: [&str; 4] =
    ["requestPrincipals", "notRequestPrincipals", "remoteIpBlocks", "notRemoteIpBlocks"];
const HTTP_OPERATION: [&str; 6] = ["hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"];
/// What else a source or an operation may have.
const SOURCE: [&str; 8] = [
    "principals",
    "notPrincipals",
    "namespaces",
    "notNamespaces",
    "serviceAccounts",
    "notServiceAccounts",
    "ipBlocks",
    "notIpBlocks",
];
const OPERATION: [&str; 2] = ["ports", "notPorts"];

impl Reader<'_> {
    /// The clauses of a rule, all of which must hold; nothing for a rule that node agents must not allow by.
    fn rule(&self, rule: &Value, action: Action) -> Result<Option<Rule>, Invalid> {
        let mut clauses = Vec::new();
        let mut has_http = false;
        for (list, inner, ours, http) in [
            ("to", "operation", OPERATION.as_slice(), HTTP_OPERATION.as_slice()),
            ("from", "source", SOURCE.as_slice(), HTTP_SOURCE.as_slice()),
        ] {
            let mut matches = Vec::new();
            for (at, entry) in self.entries(rule, list)?.iter().enumerate() {
                let at = format!("{}.{list}[{at}].{inner}", self.at);
                let fields = entry.get(inner).and_then(Value::as_object);
                let fields = fields.ok_or_else(|| invalid(&at, "is missing or no object"))?;
                if let Some(unknown) =
                    fields.keys().find(|key| !ours.contains(&key.as_str()) && !http.contains(&key.as_str()))
                {
                    return Err(invalid(format!("{at}.{unknown}"), "is no known field"));
                }
                has_http |=
                    http.iter().any(|key| !object::list(&entry[inner], &format!("/{key}")).is_empty());
                matches.push(self.fields(&entry[inner], &at)?);
            }
            if !matches.is_empty() {
                clauses.push(Clause { matches });
            }
        }
        for (at, condition) in self.entries(rule, "when")?.iter().enumerate() {
            let at = format!("{}.when[{at}]", self.at);
            let found = self.condition(condition, &at)?;
            has_http |= found.is_none();
            clauses.push(Clause { matches: vec![found.unwrap_or_default()] });
        }
        Ok((action == Action::Deny || !has_http).then_some(Rule { clauses }))
    }

    fn entries<'v>(&self, rule: &'v Value, list: &str) -> Result<&'v [Value], Invalid> {
        match rule.get(list) {
            None | Some(Value::Null) => Ok(&[]),
            Some(Value::Array(entries)) => Ok(entries),
            Some(_) => Err(invalid(format!("{}.{list}", self.at), "is no list")),
        }
    }

    /// A source or an operation.
    fn fields(&self, fields: &Value, at: &str) -> Result<Match, Invalid> {
        let values = |name: &str| values(fields, name, at);
        let strings = |name: &str| Ok::<_, Invalid>(values(name)?.into_iter().map(string).collect());
        let blocks = |name: &str| addresses(&values(name)?, &format!("{at}.{name}"));
        let ports = |name: &str| ports(&values(name)?, &format!("{at}.{name}"));
        let accounts = |name: &str| self.accounts(&values(name)?, &format!("{at}.{name}"));
        Ok(Match {
            principals: self.principals(&values("principals")?),
            not_principals: self.principals(&values("notPrincipals")?),
            namespaces: strings("namespaces")?,
            not_namespaces: strings("notNamespaces")?,
            service_accounts: accounts("serviceAccounts")?,
            not_service_accounts: accounts("notServiceAccounts")?,
            source_ips: blocks("ipBlocks")?,
            not_source_ips: blocks("notIpBlocks")?,
            destination_ports: ports("ports")?,
            not_destination_ports: ports("notPorts")?,
            ..Match::default()
        })
    }

    /// A `when`; nothing when its key is one of HTTP.
    fn condition(&self, condition: &Value, at: &str) -> Result<Option<Match>, Invalid> {
        let (yes, no) = (values(condition, "values", at)?, values(condition, "notValues", at)?);
        let (in_values, in_not) = (format!("{at}.values"), format!("{at}.notValues"));
        let strings = |values: &[&str]| values.iter().map(|value| string(value)).collect();
        let mut found = Match::default();
        match object::text(condition, "/key") {
            "" => return Err(invalid(format!("{at}.key"), "is required")),
            "source.namespace" => (found.namespaces, found.not_namespaces) = (strings(&yes), strings(&no)),
            "source.principal" => {
                (found.principals, found.not_principals) = (self.principals(&yes), self.principals(&no));
            }
            "source.ip" => {
                found.source_ips = addresses(&yes, &in_values)?;
                found.not_source_ips = addresses(&no, &in_not)?;
            }
            "destination.ip" => {
                found.destination_ips = addresses(&yes, &in_values)?;
                found.not_destination_ips = addresses(&no, &in_not)?;
            }
            "destination.port" => {
                found.destination_ports = ports(&yes, &in_values)?;
                found.not_destination_ports = ports(&no, &in_not)?;
            }
            _ => return Ok(None),
        }
        Ok(Some(found))
    }

    /// Principals of this mesh are known by every name that its trust domain has.
    fn principals(&self, values: &[&str]) -> Vec<StringMatch> {
        let same = values.iter().flat_map(|value| self.mesh.same_principals(value));
        same.map(|principal| string(&principal)).collect()
    }

    /// `namespace/account`, or an account of the policy's own namespace.
    fn accounts(&self, values: &[&str], at: &str) -> Result<Vec<ServiceAccountMatch>, Invalid> {
        let read = |value: &&str| {
            let (namespace, account) = value.split_once('/').unwrap_or((self.namespace, value));
            if account.is_empty() || account.contains(['/', '*']) {
                return Err(invalid(at, format!("{value:?} is not NAMESPACE/ACCOUNT or ACCOUNT")));
            }
            let (namespace, service_account) = (namespace.to_owned(), account.to_owned());
            Ok(ServiceAccountMatch { namespace, service_account })
        };
        values.iter().map(read).collect()
    }
}

fn values<'v>(fields: &'v Value, name: &str, at: &str) -> Result<Vec<&'v str>, Invalid> {
    let text = |value: &'v Value| {
        let bad = || invalid(format!("{at}.{name}"), format!("{value} is no string"));
        value.as_str().filter(|text| !text.is_empty()).ok_or_else(bad)
    };
    match fields.get(name) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(values)) => values.iter().map(text).collect(),
        Some(_) => Err(invalid(format!("{at}.{name}"), "is no list")),
    }
}

/// `*` is presence, a star at one end leaves the other as suffix or prefix.
fn string(value: &str) -> StringMatch {
    let kind = if value == "*" {
        MatchType::Presence(Presence {})
    } else if let Some(suffix) = value.strip_prefix('*') {
        MatchType::Suffix(suffix.to_owned())
    } else if let Some(prefix) = value.strip_suffix('*') {
        MatchType::Prefix(prefix.to_owned())
    } else {
        MatchType::Exact(value.to_owned())
    };
    StringMatch { match_type: Some(kind) }
}

fn addresses(values: &[&str], at: &str) -> Result<Vec<Address>, Invalid> {
    let read = |value: &&str| {
        let net = value
            .parse::<IpNet>()
            .or_else(|error| value.parse::<std::net::IpAddr>().map(IpNet::from).map_err(|_| error));
        let net = net.map_err(|_| invalid(at, format!("{value:?} is no address and no CIDR block")))?;
        let address = match net.addr() {
            std::net::IpAddr::V4(address) => address.octets().to_vec(),
            std::net::IpAddr::V6(address) => address.octets().to_vec(),
        };
        Ok(Address { address, length: net.prefix_len().into() })
    };
    values.iter().map(read).collect()
}

fn ports(values: &[&str], at: &str) -> Result<Vec<u32>, Invalid> {
    let read = |value: &&str| {
        let port = value.parse::<u16>().ok().filter(|port| *port != 0);
        port.map(u32::from).ok_or_else(|| invalid(at, format!("{value:?} is no port")))
    };
    values.iter().map(read).collect()
}

fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Invalid {
    Invalid { field: field.into(), problem: problem.into() }
}

#[cfg(test)]
mod tests;
