//! L4 authorization policies as values. Evaluating them is the state crate's.

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
    /// What a match means.
    pub action: Action,
    /// Rules, ORed; each a list of clauses, ANDed; each a list of matches, ORed.
    pub rules: Vec<Vec<Vec<Match>>>,
    /// Only logged, never enforced.
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

/// What a match means.
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

/// How a text is matched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StringMatch {
    /// Equal.
    Exact(Text),
    /// Starts with.
    Prefix(Text),
    /// Ends with.
    Suffix(Text),
    /// There is one, whatever it is.
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

/// What is known of a connection when it is judged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// The proven identity of the peer; `None` for plaintext.
    pub peer: Option<crate::SpiffeId>,
    /// Address of the peer.
    pub source: IpAddr,
    /// Address and final port of the destination.
    pub destination: std::net::SocketAddr,
}

impl Policy {
    /// The key under which workloads refer to it.
    #[must_use]
    pub fn key(&self) -> PolicyKey {
        PolicyKey::from(format!("{}/{}", self.namespace, self.name))
    }
}
