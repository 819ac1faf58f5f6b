//! The delta xDS protocol over ADS, without I/O: the requests that open a stream, and how each response is applied and
//! acknowledged. The state outlives a stream, which makes a reconnect incremental. It knows neither the transport nor
//! what the resources are for.
//!
//! ```text
//!   stream opened ─► one request per type: node, every held resource with its version, no names (a wildcard)
//!   response ──────► valid resources go to the sink ─► ACK, or NACK with "name: reason; …" for the others
//! ```

mod held;

use isthmus_model::{Interner, Policy, PolicyKey, RefusedPolicy, Resource};
use isthmus_proto::discovery::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use isthmus_proto::type_url;

use self::held::{Accepted, Bounds, LONGEST, LONGEST_NAME, Rejected, TypeState, address, policy, short};
use super::Rejection;

/// A subscribed resource type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Workloads and services.
    Address,
    /// Authorization policies.
    Authorization,
}

/// The resources of one response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Push {
    /// Workloads and services.
    Addresses {
        /// New and changed ones.
        upserts: Vec<Resource>,
        /// Names of removed ones.
        removed: Vec<String>,
    },
    /// Policies.
    Policies {
        /// New and changed ones.
        upserts: Vec<(PolicyKey, Policy)>,
        /// Keys of removed ones.
        removed: Vec<PolicyKey>,
        /// Rejected ones; a resource without a name is left out, since nothing can refer to it.
        refused: Vec<RefusedPolicy>,
    },
}

/// Limits of what a control plane may make the client hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// What all held resources may cost, in bytes: their size as sent, and [`RESOURCE_COST`] for each.
    pub budget: u64,
    /// The size of one resource, in bytes as sent.
    pub resource: usize,
    /// Names of rejected resources that are kept, of each type.
    pub rejected: usize,
}

/// What a held resource costs besides its bytes.
pub const RESOURCE_COST: u64 = 256;

/// A response as handled: the caller applies the push, then sends the reply.
#[derive(Debug, Clone, PartialEq)]
pub struct HandledResponse {
    /// Resources to apply; `None` for an unknown type.
    pub push: Option<Push>,
    /// ACK or NACK.
    pub reply: DeltaDiscoveryRequest,
    /// Resources of this response that were rejected.
    pub rejected: Vec<Rejection>,
}

/// State of the subscription, across streams.
#[derive(Debug)]
pub struct Session {
    node: discovery::Node,
    addresses: TypeState,
    policies: TypeState,
    texts: Interner,
    limits: Limits,
    /// What all held resources cost.
    held: u64,
}

/// The rejected resources of one response exceed what the client keeps of such.
#[derive(Debug, thiserror::Error)]
#[error(
    "the control plane sent {0} or more resources of a type that cannot be used, first {1}: the response was ignored"
)]
pub struct TooManyRejected(usize, String);

/// Resources that a NACK and the log name one by one.
pub(super) const NAMED: usize = 20;
/// `google.rpc.Code.INVALID_ARGUMENT`. Control planes look only at whether there is a detail, and at its text.
const INVALID_ARGUMENT: i32 = 3;

impl Default for Limits {
    fn default() -> Self {
        Self { budget: 1 << 30, resource: 4 << 20, rejected: 10_000 }
    }
}

// === impl Kind ===

impl Kind {
    /// Every subscribed type.
    pub const ALL: [Self; 2] = [Self::Address, Self::Authorization];

    /// The type URL.
    #[must_use]
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Address => type_url::ADDRESS,
            Self::Authorization => type_url::AUTHORIZATION,
        }
    }

    pub(super) fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }
}

// === impl Session ===

impl Session {
    /// A subscription that holds nothing yet.
    #[must_use]
    pub fn new(node: discovery::Node, limits: Limits) -> Self {
        Self {
            node,
            limits,
            held: 0,
            addresses: TypeState::default(),
            policies: TypeState::default(),
            texts: Interner::default(),
        }
    }

    /// The requests that open a stream, one per type. Only these carry the node.
    #[must_use]
    pub fn initial_requests(&self) -> Vec<DeltaDiscoveryRequest> {
        let request = |kind: Kind| DeltaDiscoveryRequest {
            node: Some(self.node.clone()),
            type_url: kind.type_url().to_owned(),
            initial_resource_versions: self.type_state(kind).initial_resource_versions(),
            ..DeltaDiscoveryRequest::default()
        };
        Kind::ALL.map(request).to_vec()
    }

    /// Decodes a response, updates the versions, and makes the ACK or NACK.
    ///
    /// # Errors
    /// When it has more unusable policies than can have a stand-in. Nothing of it is applied then: a policy without a
    /// stand-in would be none.
    pub fn handle_response(
        &mut self,
        response: DeltaDiscoveryResponse,
    ) -> Result<HandledResponse, TooManyRejected> {
        let DeltaDiscoveryResponse { resources, type_url, nonce, removed_resources: removed, .. } = response;
        let mut reply =
            DeltaDiscoveryRequest { type_url, response_nonce: nonce, ..DeltaDiscoveryRequest::default() };
        let Some(kind) = Kind::of(&reply.type_url) else {
            return Ok(HandledResponse { push: None, reply, rejected: Vec::new() });
        };
        let (push, rejected) = match kind {
            Kind::Address => {
                let decoded = self.addresses.decode(kind, resources, address, self.bounds(), &mut self.texts);
                let accepted = self.addresses.commit(decoded.accepted, &mut self.held);
                self.addresses.reject(&decoded.rejected, self.limits.rejected);
                self.addresses.remove(&removed, &mut self.held);
                let upserts = accepted.into_iter().map(|accepted| accepted.value).collect();
                (Push::Addresses { upserts, removed }, decoded.rejected)
            }
            Kind::Authorization => {
                let decoded = self.policies.decode(kind, resources, policy, self.bounds(), &mut self.texts);
                if let Some(first) = decoded.rejected.first()
                    && self.policies.rejected.len() + decoded.rejected.len() > self.limits.rejected
                {
                    return Err(TooManyRejected(self.limits.rejected, first.rejection.name.clone()));
                }
                let accepted = self.policies.commit(decoded.accepted, &mut self.held);
                self.policies.reject(&decoded.rejected, self.limits.rejected);
                self.policies.remove(&removed, &mut self.held);
                let keyed =
                    |accepted: Accepted<Policy>| (PolicyKey::from(accepted.name.as_str()), accepted.value);
                let push = Push::Policies {
                    upserts: accepted.into_iter().map(keyed).collect(),
                    removed: removed.iter().map(|name| PolicyKey::from(short(name, LONGEST_NAME))).collect(),
                    refused: decoded.rejected.iter().filter_map(Rejected::policy).collect(),
                };
                (push, decoded.rejected)
            }
        };
        let rejected: Vec<Rejection> = rejected.into_iter().map(|refused| refused.rejection).collect();
        if !rejected.is_empty() {
            reply.error_detail =
                Some(discovery::Status { code: INVALID_ARGUMENT, message: detail(&rejected) });
        }
        Ok(HandledResponse { push: Some(push), reply, rejected })
    }

    fn bounds(&self) -> Bounds {
        Bounds { limits: self.limits, held: self.held }
    }

    /// Whether a response of every type was handled, with or without rejected resources in it.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.addresses.synced && self.policies.synced
    }

    /// Resources whose latest version is rejected, by type and name.
    #[must_use]
    pub fn rejections(&self) -> Vec<Rejection> {
        let of = |kind: Kind| {
            self.type_state(kind).rejected.iter().map(move |(name, reason)| Rejection {
                kind,
                name: name.clone(),
                reason: reason.clone(),
            })
        };
        Kind::ALL.into_iter().flat_map(of).collect()
    }

    fn type_state(&self, kind: Kind) -> &TypeState {
        match kind {
            Kind::Address => &self.addresses,
            Kind::Authorization => &self.policies,
        }
    }
}

/// The text of a NACK: the first names and reasons, and how many more there are.
fn detail(rejected: &[Rejection]) -> String {
    let each = |rejection: &Rejection| format!("{}: {}", short(&rejection.name, LONGEST), rejection.reason);
    let mut texts: Vec<_> = rejected.iter().take(NAMED).map(each).collect();
    if rejected.len() > NAMED {
        texts.push(format!("and {} more", rejected.len() - NAMED));
    }
    texts.join("; ")
}

#[cfg(test)]
mod tests;
