//! Converts `istio.security.Authorization`. Strict: a dropped entry could widen an ALLOW or void a DENY.

use ipnet::IpNet;
use isthmus_proto::security as proto;

use super::{WireError, addr};
use crate::admit;
use crate::policy::{AccountMatch, Action, Match, Outline, Policy, Scope, StringMatch};

impl TryFrom<proto::Authorization> for Policy {
    type Error = WireError;

    fn try_from(wire: proto::Authorization) -> Result<Self, Self::Error> {
        let proto::Authorization { name, namespace, scope, action, rules, dry_run, extensions: _ } = wire;
        admit::policy(Self {
            name: name.into(),
            namespace: namespace.into(),
            scope: reach(scope).ok_or(WireError::Unsupported { field: "scope", value: scope })?,
            action: verdict(action).ok_or(WireError::Unsupported { field: "action", value: action })?,
            rules: all(rules, |proto::Rule { clauses }| {
                all(clauses, |proto::Clause { matches }| all(matches, Match::try_from))
            })?,
            dry_run,
        })
    }
}

fn reach(scope: i32) -> Option<Scope> {
    Some(match proto::Scope::try_from(scope).ok()? {
        proto::Scope::Global => Scope::Global,
        proto::Scope::Namespace => Scope::Namespace,
        proto::Scope::WorkloadSelector => Scope::WorkloadSelector,
    })
}

fn verdict(action: i32) -> Option<Action> {
    Some(match proto::Action::try_from(action).ok()? {
        proto::Action::Allow => Action::Allow,
        proto::Action::Deny => Action::Deny,
    })
}

pub(super) fn outline(wire: &proto::Authorization) -> Option<Outline> {
    Some(Outline {
        namespace: wire.namespace.as_str().into(),
        scope: reach(wire.scope)?,
        action: verdict(wire.action).unwrap_or(Action::Deny),
        dry_run: wire.dry_run,
    })
}

impl TryFrom<proto::Match> for Match {
    type Error = WireError;

    fn try_from(wire: proto::Match) -> Result<Self, Self::Error> {
        let proto::Match {
            namespaces,
            not_namespaces,
            principals,
            not_principals,
            source_ips,
            not_source_ips,
            destination_ips,
            not_destination_ips,
            destination_ports,
            not_destination_ports,
            service_accounts,
            not_service_accounts,
            extensions: _,
        } = wire;
        Ok(Self {
            namespaces: texts("match.namespaces", namespaces)?,
            not_namespaces: texts("match.not_namespaces", not_namespaces)?,
            service_accounts: accounts(service_accounts),
            not_service_accounts: accounts(not_service_accounts),
            principals: texts("match.principals", principals)?,
            not_principals: texts("match.not_principals", not_principals)?,
            source_ips: ranges("match.source_ips", source_ips)?,
            not_source_ips: ranges("match.not_source_ips", not_source_ips)?,
            destination_ips: ranges("match.destination_ips", destination_ips)?,
            not_destination_ips: ranges("match.not_destination_ips", not_destination_ips)?,
            destination_ports: ports("match.destination_ports", destination_ports)?,
            not_destination_ports: ports("match.not_destination_ports", not_destination_ports)?,
        })
    }
}

fn all<A, B>(wire: Vec<A>, read: impl Fn(A) -> Result<B, WireError>) -> Result<Vec<B>, WireError> {
    wire.into_iter().map(read).collect()
}

fn texts(field: &'static str, wire: Vec<proto::StringMatch>) -> Result<Vec<StringMatch>, WireError> {
    use proto::string_match::MatchType;
    all(wire, |proto::StringMatch { match_type }| {
        Ok(match match_type.ok_or(WireError::Missing { field })? {
            MatchType::Exact(text) => StringMatch::Exact(text.into()),
            MatchType::Prefix(text) => StringMatch::Prefix(text.into()),
            MatchType::Suffix(text) => StringMatch::Suffix(text.into()),
            MatchType::Presence(proto::Presence {}) => StringMatch::Presence,
        })
    })
}

fn accounts(wire: Vec<proto::ServiceAccountMatch>) -> Vec<AccountMatch> {
    wire.into_iter()
        .map(|proto::ServiceAccountMatch { namespace, service_account }| AccountMatch {
            namespace: namespace.into(),
            service_account: service_account.into(),
        })
        .collect()
}

fn ranges(field: &'static str, wire: Vec<proto::Address>) -> Result<Vec<IpNet>, WireError> {
    all(wire, |proto::Address { address, length }| addr::range(field, &address, length))
}

fn ports(field: &'static str, wire: Vec<u32>) -> Result<Vec<u16>, WireError> {
    all(wire, |value| addr::port(field, value))
}
