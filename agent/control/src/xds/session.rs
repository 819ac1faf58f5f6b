//! The delta xDS protocol over ADS, without I/O: the requests that open a stream, and how each response is applied and
//! acknowledged. The state outlives a stream, which makes a reconnect incremental. It knows neither the transport nor
//! what the resources are for.
//!
//! ```text
//!   stream opened ─► one request per type: node, every held resource with its version, no names (a wildcard)
//!   response ──────► valid resources go to the sink ─► ACK, or NACK with "name: reason; …" for the others
//! ```

use std::collections::{BTreeMap, HashMap};

use isthmus_model::{Interner, Outline, Policy, PolicyKey, RefusedPolicy, Resource, Text, wire};
use isthmus_proto::discovery::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use isthmus_proto::{security, type_url, workload};
use prost::Message;

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
}

/// The held resources of one type, by name and version only.
#[derive(Debug, Default)]
struct TypeState {
    /// Last accepted version by name. Texts are interned: a workload's name is its uid, and versions repeat.
    versions: HashMap<Text, Text>,
    /// Reason by name of resources whose latest version was rejected.
    rejected: BTreeMap<String, String>,
    /// Whether a response of this type has been handled.
    synced: bool,
}

/// A decoded resource.
struct Accepted<T> {
    name: Text,
    value: T,
}

/// Decodes the resource of this name.
type Decode<T> = fn(name: &str, body: &[u8], texts: &mut Interner) -> Result<Accepted<T>, Unusable>;

/// A rejected resource.
struct Rejected {
    rejection: Rejection,
    outline: Option<Outline>,
}

/// Why a resource was rejected. The texts are sent in NACKs.
#[derive(Debug, thiserror::Error)]
enum DecodeError {
    #[error("resource is empty")]
    Empty,
    #[error("resource is a {0:?}")]
    OtherType(String),
    #[error("resource has no name")]
    NoName,
    #[error(transparent)]
    Protobuf(#[from] prost::DecodeError),
    #[error(transparent)]
    Wire(#[from] wire::WireError),
}

/// A resource that cannot be used, with the scope of the policy if that much could be read.
struct Unusable {
    error: DecodeError,
    outline: Option<Outline>,
}

/// `google.rpc.Code.INVALID_ARGUMENT`. Control planes look only at whether there is a detail, and at its text.
const INVALID_ARGUMENT: i32 = 3;

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

    fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }
}

// === impl Session ===

impl Session {
    /// A subscription that holds nothing yet.
    #[must_use]
    pub fn new(node: discovery::Node) -> Self {
        Self {
            node,
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
    pub fn handle_response(&mut self, response: DeltaDiscoveryResponse) -> HandledResponse {
        let DeltaDiscoveryResponse { resources, type_url, nonce, removed_resources: removed, .. } = response;
        let mut reply =
            DeltaDiscoveryRequest { type_url, response_nonce: nonce, ..DeltaDiscoveryRequest::default() };
        let Some(kind) = Kind::of(&reply.type_url) else {
            return HandledResponse { push: None, reply, rejected: Vec::new() };
        };
        let (push, rejected) = match kind {
            Kind::Address => {
                let (accepted, rejected) = self.addresses.accept(kind, resources, address, &mut self.texts);
                self.addresses.remove(&removed);
                let upserts = accepted.into_iter().map(|accepted| accepted.value).collect();
                (Push::Addresses { upserts, removed }, rejected)
            }
            Kind::Authorization => {
                let (accepted, rejected) = self.policies.accept(kind, resources, policy, &mut self.texts);
                self.policies.remove(&removed);
                let keyed =
                    |accepted: Accepted<Policy>| (PolicyKey::from(accepted.name.as_str()), accepted.value);
                let push = Push::Policies {
                    upserts: accepted.into_iter().map(keyed).collect(),
                    removed: removed.into_iter().map(PolicyKey::from).collect(),
                    refused: rejected.iter().filter_map(Rejected::policy).collect(),
                };
                (push, rejected)
            }
        };
        let rejected: Vec<Rejection> = rejected.into_iter().map(|refused| refused.rejection).collect();
        if !rejected.is_empty() {
            let each = |rejection: &Rejection| format!("{}: {}", rejection.name, rejection.reason);
            let message = rejected.iter().map(each).collect::<Vec<_>>().join("; ");
            reply.error_detail = Some(discovery::Status { code: INVALID_ARGUMENT, message });
        }
        HandledResponse { push: Some(push), reply, rejected }
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

// === impl Rejected ===

impl Rejected {
    fn policy(&self) -> Option<RefusedPolicy> {
        let Self { rejection, outline } = self;
        let key = Some(rejection.name.as_str()).filter(|name| !name.is_empty())?;
        Some(RefusedPolicy { key: key.into(), outline: outline.clone() })
    }
}

impl<E: Into<DecodeError>> From<E> for Unusable {
    fn from(error: E) -> Self {
        Self { error: error.into(), outline: None }
    }
}

// === impl TypeState ===

impl TypeState {
    /// `initial_resource_versions` of a new stream. A name of which no version was ever accepted is listed with an empty
    /// one: the server then sends it again if it still exists, and its removal if it does not, which ends the stand-in
    /// that is enforced for a rejected policy.
    fn initial_resource_versions(&self) -> HashMap<String, String> {
        let text = |(name, version): (&Text, &Text)| (name.to_string(), version.to_string());
        let mut versions: HashMap<String, String> = self.versions.iter().map(text).collect();
        for name in self.rejected.keys().filter(|name| !name.is_empty()) {
            versions.entry(name.clone()).or_default();
        }
        versions
    }

    /// Decodes resources and records their versions, or why they were rejected. A name whose new version is rejected
    /// keeps the old version: that one is held, and the server must still announce its removal.
    fn accept<T>(
        &mut self,
        kind: Kind,
        resources: Vec<discovery::Resource>,
        decode: Decode<T>,
        texts: &mut Interner,
    ) -> (Vec<Accepted<T>>, Vec<Rejected>) {
        self.synced = true;
        let (mut accepted, mut rejected) = (Vec::with_capacity(resources.len()), Vec::new());
        // Aliases matter to on-demand subscriptions only: a workload is found by its addresses anyway.
        for discovery::Resource { version, resource, name, aliases: _ } in resources {
            match body(kind, resource).map_err(Unusable::from).and_then(|bytes| decode(&name, &bytes, texts))
            {
                Ok(one) if !name.is_empty() => {
                    self.rejected.remove(&name);
                    self.versions.insert(one.name.clone(), texts.name(&version));
                    accepted.push(one);
                }
                outcome => {
                    let Unusable { error, outline } =
                        outcome.err().unwrap_or_else(|| DecodeError::NoName.into());
                    let reason = error.to_string();
                    self.rejected.insert(name.clone(), reason.clone());
                    rejected.push(Rejected { rejection: Rejection { kind, name, reason }, outline });
                }
            }
        }
        (accepted, rejected)
    }

    fn remove(&mut self, names: &[String]) {
        for name in names {
            self.versions.remove(name.as_str());
            self.rejected.remove(name);
        }
    }
}

/// The bytes of a resource, if it is of the type of its response.
fn body(kind: Kind, resource: Option<prost_types::Any>) -> Result<Vec<u8>, DecodeError> {
    let any = resource.ok_or(DecodeError::Empty)?;
    if any.type_url != kind.type_url() {
        return Err(DecodeError::OtherType(any.type_url));
    }
    Ok(any.value)
}

fn address(name: &str, bytes: &[u8], texts: &mut Interner) -> Result<Accepted<Resource>, Unusable> {
    let message = workload::Address::decode(bytes)?;
    let value = wire::address(message, texts)?;
    let name = match &value {
        Resource::Workload(workload) if workload.uid.as_str() == name => Text::from(&workload.uid),
        _ => texts.name(name),
    };
    Ok(Accepted { name, value })
}

fn policy(name: &str, bytes: &[u8], _: &mut Interner) -> Result<Accepted<Policy>, Unusable> {
    let message = security::Authorization::decode(bytes)?;
    let outline = wire::outline(&message);
    let value = wire::policy(message).map_err(|error| Unusable { error: error.into(), outline })?;
    Ok(Accepted { name: name.into(), value })
}

#[cfg(test)]
mod tests;
