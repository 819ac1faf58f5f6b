//! Whether a policy matches a connection. Rules are ORed, their clauses ANDed, a clause's matches ORed, a match's
//! dimensions ANDed, a dimension's values ORed; no negative value may hit.

use ipnet::IpNet;
use isthmus_model::policy::{AccountMatch, Match, StringMatch};
use isthmus_model::{Facts, Policy, SpiffeId, TrustDomain, TrustDomains};

/// The facts of a connection in the forms that policies match.
pub(super) struct Subject<'a> {
    facts: &'a Facts,
    principal: Option<String>,
    /// The principal under the aliases of the mesh's trust domain.
    aliases: Vec<String>,
}

impl<'a> Subject<'a> {
    pub(super) fn new(facts: &'a Facts) -> Self {
        let principal = facts.peer.as_ref().map(SpiffeId::principal);
        Self { facts, principal, aliases: Vec::new() }
    }

    /// Adds the peer's names under the other trust domains of the mesh, of which `own` is one: a policy that names any of
    /// them means the peer.
    pub(super) fn with_aliases(mut self, domains: &TrustDomains, own: &TrustDomain) -> Self {
        let names = self.facts.peer.iter().flat_map(|peer| domains.other_names(own, peer));
        self.aliases = names.map(|id| id.principal()).collect();
        self
    }

    pub(super) fn facts(&self) -> &'a Facts {
        self.facts
    }

    /// A policy without rules never matches; an empty rule or clause always does.
    pub(super) fn matches(&self, policy: &Policy) -> bool {
        policy.rules.iter().any(|clauses| {
            clauses.iter().all(|matches| matches.is_empty() || matches.iter().any(|one| self.hits(one)))
        })
    }

    fn hits(&self, wanted: &Match) -> bool {
        let Match {
            namespaces,
            not_namespaces,
            service_accounts,
            not_service_accounts,
            principals,
            not_principals,
            source_ips,
            not_source_ips,
            destination_ips,
            not_destination_ips,
            destination_ports,
            not_destination_ports,
        } = wanted;
        // A match without any L4 dimension is what is left of an L7 rule. It must not match everything.
        if *wanted == Match::default() {
            return false;
        }
        let peer = self.facts.peer.as_ref();
        let namespace = peer.map(|peer| peer.namespace.as_str());
        let in_range = |address: std::net::IpAddr| move |range: &IpNet| range.contains(&address);
        let destination = self.facts.destination;
        dimension(namespaces, not_namespaces, |text| is(text, namespace))
            && dimension(principals, not_principals, |text| self.is_principal(text))
            && dimension(service_accounts, not_service_accounts, |account| self.is_account(account))
            && dimension(source_ips, not_source_ips, in_range(self.facts.source.to_canonical()))
            && dimension(destination_ips, not_destination_ips, in_range(destination.ip().to_canonical()))
            && dimension(destination_ports, not_destination_ports, |port| *port == destination.port())
    }

    fn is_principal(&self, wanted: &StringMatch) -> bool {
        is(wanted, self.principal.as_deref()) || self.aliases.iter().any(|name| is(wanted, Some(name)))
    }

    /// Service accounts are matched without the trust domain.
    fn is_account(&self, account: &AccountMatch) -> bool {
        self.facts.peer.as_ref().is_some_and(|peer| {
            peer.namespace == account.namespace && peer.service_account == account.service_account
        })
    }
}

fn dimension<T>(positive: &[T], negative: &[T], hit: impl Fn(&T) -> bool) -> bool {
    (positive.is_empty() || positive.iter().any(&hit)) && !negative.iter().any(&hit)
}

/// A peer without an identity matches nothing, not even presence.
fn is(wanted: &StringMatch, text: Option<&str>) -> bool {
    let Some(text) = text else { return false };
    match wanted {
        StringMatch::Exact(exact) => text == exact.as_str(),
        StringMatch::Prefix(prefix) => text.starts_with(prefix.as_str()),
        StringMatch::Suffix(suffix) => text.ends_with(suffix.as_str()),
        StringMatch::Presence => !text.is_empty(),
    }
}
