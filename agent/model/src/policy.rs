//! L4 authorization policies as values. Evaluation is in the state crate.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::name::{Namespace, PolicyKey, ServiceAccount, Text};

/// One policy. Semantics: `istio.security.Authorization`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Name.
    pub name: Text,
    /// Namespace.
    pub namespace: Namespace,
    /// What it applies to.
    pub scope: Scope,
    /// Effect of a match.
    pub action: Action,
    /// Rules, ORed; each a list of clauses, ANDed; each a list of matches, ORed.
    pub rules: Vec<Vec<Vec<Match>>>,
    /// Dry run: logged, not enforced.
    pub dry_run: bool,
}

/// What a policy applies to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Scope {
    /// Every workload.
    Global,
    /// Every workload of the policy's namespace.
    Namespace,
    /// Workloads that list it.
    WorkloadSelector,
}

/// Effect of a match.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// The connection may be accepted.
    Allow,
    /// The connection is refused.
    Deny,
}

/// Dimensions are ANDed, values ORed, every `not_*` must have no hit. All empty: never matches.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Match {
    /// Namespaces of the peer.
    pub namespaces: Vec<StringMatch>,
    /// Namespaces the peer must not have.
    pub not_namespaces: Vec<StringMatch>,
    /// Service accounts of the peer.
    pub service_accounts: Vec<AccountMatch>,
    /// Service accounts the peer must not have.
    pub not_service_accounts: Vec<AccountMatch>,
    /// Principals of the peer, without `spiffe://`.
    pub principals: Vec<StringMatch>,
    /// Principals the peer must not have.
    pub not_principals: Vec<StringMatch>,
    /// Source ranges.
    pub source_ips: Vec<IpNet>,
    /// Ranges the source must not be in.
    pub not_source_ips: Vec<IpNet>,
    /// Destination ranges.
    pub destination_ips: Vec<IpNet>,
    /// Ranges the destination must not be in.
    pub not_destination_ips: Vec<IpNet>,
    /// Destination ports.
    pub destination_ports: Vec<u16>,
    /// Ports the destination must not have.
    pub not_destination_ports: Vec<u16>,
}

/// How a string is matched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StringMatch {
    /// Equal.
    Exact(Text),
    /// Starts with.
    Prefix(Text),
    /// Ends with.
    Suffix(Text),
    /// Any non-empty value.
    Presence,
}

/// A service account in a namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AccountMatch {
    /// Namespace.
    pub namespace: Namespace,
    /// Service account.
    pub service_account: ServiceAccount,
}

/// A rejected policy: its key, and the part of it that could be decoded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RefusedPolicy {
    /// The name of its resource.
    pub key: PolicyKey,
    /// `None` when not even its scope could be decoded.
    pub outline: Option<Outline>,
}

/// The part of a rejected policy that determines its reach.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outline {
    /// Namespace; empty when the message has none.
    pub namespace: Namespace,
    /// What it applies to.
    pub scope: Scope,
    /// Effect of a match; an unknown action is treated as a DENY.
    pub action: Action,
    /// Dry run: logged, not enforced.
    pub dry_run: bool,
}

/// The facts of a connection that policies are evaluated on.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Facts {
    /// The verified identity of the peer; `None` for plaintext.
    pub peer: Option<crate::SpiffeId>,
    /// Address of the peer.
    pub source: IpAddr,
    /// Address and final port of the destination.
    pub destination: std::net::SocketAddr,
}

impl RefusedPolicy {
    /// The policy that is enforced in place of one of which no version was ever accepted. It denies everything that the
    /// policy might have denied: an ALLOW exists and matches nothing, a DENY matches its whole scope, and a policy that could
    /// not be decoded at all denies the namespace of its key. A policy of `root` may apply to the whole mesh, so there (or
    /// anywhere, while `root` is unknown) it denies everywhere.
    #[must_use]
    pub fn stand_in(&self, root: Option<&Namespace>) -> Policy {
        let (namespace, name) = self.key.as_str().split_once('/').unwrap_or(("", self.key.as_str()));
        let namespace = Namespace::from(namespace);
        let everywhere = namespace.is_empty() || root.is_none_or(|root| *root == namespace);
        let unread = || Outline {
            namespace: namespace.clone(),
            scope: if everywhere { Scope::Global } else { Scope::Namespace },
            action: Action::Deny,
            dry_run: false,
        };
        let Outline { namespace: said, scope, action, dry_run } = self.outline.clone().unwrap_or_else(unread);
        Policy {
            name: name.into(),
            namespace: if said.is_empty() { namespace } else { said },
            scope,
            action,
            rules: match action {
                Action::Allow => Vec::new(),
                // A rule without clauses matches everything.
                Action::Deny => vec![Vec::new()],
            },
            dry_run,
        }
    }
}

impl Policy {
    /// The key under which workloads refer to it.
    #[must_use]
    pub fn key(&self) -> PolicyKey {
        PolicyKey::from(format!("{}/{}", self.namespace, self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_at_all_denies_as_far_as_it_might_have_reached() {
        let unread = |key: &str| RefusedPolicy { key: key.into(), outline: None };
        for (key, root, scope) in [
            ("shop/p", Some("istio-system"), Scope::Namespace),
            ("istio-system/p", Some("istio-system"), Scope::Global),
            // The root namespace is not known: it may be this one.
            ("shop/p", None, Scope::Global),
            ("/p", Some("istio-system"), Scope::Global),
            ("p", Some("istio-system"), Scope::Global),
        ] {
            let root = root.map(Namespace::from);
            let policy = unread(key).stand_in(root.as_ref());
            assert_eq!((policy.scope, policy.action), (scope, Action::Deny), "{key} {root:?}");
            assert_eq!(policy.rules, [Vec::<Vec<Match>>::new()], "{key}: every connection matches");
            assert_eq!(policy.name.as_str(), "p");
        }
    }
}
