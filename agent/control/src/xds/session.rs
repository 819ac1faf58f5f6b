//! The delta ADS protocol without I/O: what to send when a stream opens, and what a response means and how it is
//! answered. State survives from stream to stream: that is what makes a reconnect incremental.
//!
//! ```text
//!   opened ──► one request per type: node, everything we hold with its version, no names (= all of them)
//!   response ─► the good resources go to the sink, bad ones are named ──► ACK, or NACK with "name: reason; …"
//! ```

use std::collections::{BTreeMap, HashMap};

use isthmus_model::{Interner, Outline, Policy, PolicyKey, RefusedPolicy, Resource, Text, wire};
use isthmus_proto::discovery::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use isthmus_proto::{security, type_url, workload};
use prost::Message;

use super::Rejection;

/// The types that are subscribed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Workloads and services.
    Address,
    /// Policies.
    Authorization,
}

/// What a response brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Push {
    /// Workloads and services.
    Addresses {
        /// New and changed ones.
        upserts: Vec<Resource>,
        /// Names of those that are gone.
        removed: Vec<String>,
    },
    /// Policies.
    Policies {
        /// New and changed ones.
        upserts: Vec<(PolicyKey, Policy)>,
        /// Those that are gone.
        removed: Vec<PolicyKey>,
        /// Those that were refused, but for resources without a name, which are nobody's.
        refused: Vec<RefusedPolicy>,
    },
}

/// What to do about a response: apply the push, then send the reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Reaction {
    /// What to apply; `None` for a type that is not known.
    pub push: Option<Push>,
    /// ACK or NACK.
    pub reply: DeltaDiscoveryRequest,
    /// What was refused in this response.
    pub rejected: Vec<Rejection>,
}

/// State of the conversation.
#[derive(Debug)]
pub struct Session {
    node: discovery::Node,
    addresses: Held,
    policies: Held,
    texts: Interner,
}

/// What is held of one type.
#[derive(Debug, Default)]
struct Held {
    /// Last accepted version by name. Both are shared: a workload's name is its uid, and versions repeat.
    versions: HashMap<Text, Text>,
    /// Reasons of what is refused at present by name.
    rejected: BTreeMap<String, String>,
    /// Whether a first response was taken.
    synced: bool,
}

/// A resource of a response that can be used.
struct Accepted<T> {
    name: Text,
    value: T,
}

/// Reads a resource of this name.
type Decode<T> = fn(name: &str, body: &[u8], texts: &mut Interner) -> Result<Accepted<T>, Bad>;

/// A resource of a response that cannot be used.
struct Refused {
    rejection: Rejection,
    outline: Option<Outline>,
}

/// Why a resource cannot be used, and how far it reaches if it is a policy of which that much could be read.
#[derive(Default)]
struct Bad {
    reason: String,
    outline: Option<Outline>,
}

/// `google.rpc.Code.INVALID_ARGUMENT`. Control planes look at the presence of the detail and at its text only.
const INVALID_ARGUMENT: i32 = 3;

// === impl Kind ===

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Address, Self::Authorization];

    /// The type's name on the wire.
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
    /// A conversation that has not begun.
    #[must_use]
    pub fn new(node: discovery::Node) -> Self {
        Self { node, addresses: Held::default(), policies: Held::default(), texts: Interner::default() }
    }

    /// A stream was opened: the requests to start it with. Only these carry the node.
    #[must_use]
    pub fn opened(&self) -> Vec<DeltaDiscoveryRequest> {
        let request = |kind: Kind| DeltaDiscoveryRequest {
            node: Some(self.node.clone()),
            type_url: kind.type_url().to_owned(),
            initial_resource_versions: self.held(kind).told(),
            ..DeltaDiscoveryRequest::default()
        };
        Kind::ALL.map(request).to_vec()
    }

    /// A response arrived.
    pub fn response(&mut self, response: DeltaDiscoveryResponse) -> Reaction {
        let DeltaDiscoveryResponse { resources, type_url, nonce, removed_resources: removed, .. } = response;
        let mut reply =
            DeltaDiscoveryRequest { type_url, response_nonce: nonce, ..DeltaDiscoveryRequest::default() };
        let Some(kind) = Kind::of(&reply.type_url) else {
            return Reaction { push: None, reply, rejected: Vec::new() };
        };
        let (push, rejected) = match kind {
            Kind::Address => {
                let (accepted, rejected) = self.addresses.take(kind, resources, address, &mut self.texts);
                self.addresses.remove(&removed);
                let upserts = accepted.into_iter().map(|accepted| accepted.value).collect();
                (Push::Addresses { upserts, removed }, rejected)
            }
            Kind::Authorization => {
                let (accepted, rejected) = self.policies.take(kind, resources, policy, &mut self.texts);
                self.policies.remove(&removed);
                let keyed =
                    |accepted: Accepted<Policy>| (PolicyKey::from(accepted.name.as_str()), accepted.value);
                let push = Push::Policies {
                    upserts: accepted.into_iter().map(keyed).collect(),
                    removed: removed.into_iter().map(PolicyKey::from).collect(),
                    refused: rejected.iter().filter_map(Refused::policy).collect(),
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
        Reaction { push: Some(push), reply, rejected }
    }

    /// Whether a response of every type was taken, with or without refused resources in it.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.addresses.synced && self.policies.synced
    }

    /// What is refused at present, by type and name.
    #[must_use]
    pub fn rejections(&self) -> Vec<Rejection> {
        let of = |kind: Kind| {
            self.held(kind).rejected.iter().map(move |(name, reason)| Rejection {
                kind,
                name: name.clone(),
                reason: reason.clone(),
            })
        };
        Kind::ALL.into_iter().flat_map(of).collect()
    }

    fn held(&self, kind: Kind) -> &Held {
        match kind {
            Kind::Address => &self.addresses,
            Kind::Authorization => &self.policies,
        }
    }
}

// === impl Refused ===

impl Refused {
    fn policy(&self) -> Option<RefusedPolicy> {
        let Self { rejection, outline } = self;
        let key = Some(rejection.name.as_str()).filter(|name| !name.is_empty())?;
        Some(RefusedPolicy { key: key.into(), outline: outline.clone() })
    }
}

impl From<String> for Bad {
    fn from(reason: String) -> Self {
        Self { reason, outline: None }
    }
}

// === impl Held ===

impl Held {
    /// What a new stream is told of it. A name of which nothing was ever accepted stands there without a version: it is
    /// sent again if it still exists, and told to be gone if it does not, which lifts what stands in for it.
    fn told(&self) -> HashMap<String, String> {
        let text = |(name, version): (&Text, &Text)| (name.to_string(), version.to_string());
        let mut told: HashMap<String, String> = self.versions.iter().map(text).collect();
        for name in self.rejected.keys().filter(|name| !name.is_empty()) {
            told.entry(name.clone()).or_default();
        }
        told
    }

    /// Takes what can be used, and remembers versions and reasons. A name whose new version is refused stays listed
    /// with the old one: that is what is held, and its removal must still be told to us.
    fn take<T>(
        &mut self,
        kind: Kind,
        resources: Vec<discovery::Resource>,
        decode: Decode<T>,
        texts: &mut Interner,
    ) -> (Vec<Accepted<T>>, Vec<Refused>) {
        self.synced = true;
        let (mut accepted, mut rejected) = (Vec::with_capacity(resources.len()), Vec::new());
        // An alias is an address of its workload, by which the workload is found anyhow; nobody waits here for a name.
        for discovery::Resource { version, resource, name, aliases: _ } in resources {
            match body(kind, resource).map_err(Bad::from).and_then(|bytes| decode(&name, &bytes, texts)) {
                Ok(one) if !name.is_empty() => {
                    self.rejected.remove(&name);
                    self.versions.insert(one.name.clone(), texts.name(&version));
                    accepted.push(one);
                }
                outcome => {
                    let nameless = || Bad::from("resource has no name".to_owned());
                    let Bad { reason, outline } = outcome.err().unwrap_or_else(nameless);
                    self.rejected.insert(name.clone(), reason.clone());
                    rejected.push(Refused { rejection: Rejection { kind, name, reason }, outline });
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

/// The bytes of a resource, if they claim to be of the type that was announced.
fn body(kind: Kind, resource: Option<prost_types::Any>) -> Result<Vec<u8>, String> {
    let any = resource.ok_or("resource is empty")?;
    if any.type_url != kind.type_url() {
        return Err(format!("resource is a {:?}", any.type_url));
    }
    Ok(any.value)
}

fn address(name: &str, bytes: &[u8], texts: &mut Interner) -> Result<Accepted<Resource>, Bad> {
    let message = workload::Address::decode(bytes).map_err(|error| error.to_string())?;
    let value = wire::address(message, texts).map_err(|error| error.to_string())?;
    let name = match &value {
        Resource::Workload(workload) if workload.uid.as_str() == name => Text::from(&workload.uid),
        _ => texts.name(name),
    };
    Ok(Accepted { name, value })
}

fn policy(name: &str, bytes: &[u8], _: &mut Interner) -> Result<Accepted<Policy>, Bad> {
    let message = security::Authorization::decode(bytes).map_err(|error| error.to_string())?;
    let outline = wire::outline(&message);
    let value = wire::policy(message).map_err(|error| Bad { reason: error.to_string(), outline })?;
    Ok(Accepted { name: name.into(), value })
}

#[cfg(test)]
mod tests;
