//! The held resources of one type: what a response's resources become, what is recorded of them, and the limits of both. It
//! does not know requests.

use std::collections::{BTreeMap, HashMap};

use isthmus_model::{Interner, Outline, Policy, RefusedPolicy, Resource, Text, wire};
use isthmus_proto::{discovery, security, workload};
use prost::Message;

use super::{Kind, Limits, RESOURCE_COST};
use crate::xds::Rejection;

/// The held resources of one type, by name and version only.
#[derive(Debug, Default)]
pub(super) struct TypeState {
    /// What is held, by name. Texts are interned: a workload's name is its uid, and versions repeat.
    pub(super) versions: HashMap<Text, Held>,
    /// Reason by name of resources whose latest version was rejected.
    pub(super) rejected: BTreeMap<String, String>,
    /// Whether a response of this type has been handled.
    pub(super) synced: bool,
}

/// A held resource.
#[derive(Debug)]
pub(super) struct Held {
    /// The last accepted version.
    version: Text,
    /// Its size as sent.
    size: u32,
}

/// A decoded resource.
pub(super) struct Accepted<T> {
    pub(super) name: Text,
    pub(super) value: T,
}

/// Decodes the resource of this name.
pub(super) type Decode<T> =
    fn(name: &str, body: &[u8], texts: &mut Interner) -> Result<Accepted<T>, Unusable>;

/// The resources of one response.
pub(super) struct Decoded<T> {
    pub(super) accepted: Vec<(Accepted<T>, Held)>,
    pub(super) rejected: Vec<Rejected>,
}

/// The limits, and what is held with the resources that were admitted so far.
pub(super) struct Bounds {
    pub(super) limits: Limits,
    pub(super) held: u64,
}

/// A rejected resource.
pub(super) struct Rejected {
    pub(super) rejection: Rejection,
    outline: Option<Outline>,
}

/// Why a resource was rejected. The texts are sent in NACKs.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("resource is empty")]
    Empty,
    #[error("resource is a {0:?}")]
    OtherType(String),
    #[error("resource has no name")]
    NoName,
    #[error("resource name is longer than {0} bytes")]
    LongName(usize),
    #[error("resource of {size} bytes is larger than {limit} bytes")]
    TooLarge { size: usize, limit: usize },
    #[error("the resources of the mesh exceed the budget of {0} bytes: see ISTHMUS_CONFIG_BUDGET")]
    OverBudget(u64),
    #[error(transparent)]
    Protobuf(#[from] prost::DecodeError),
    #[error(transparent)]
    Wire(#[from] wire::WireError),
}

/// A resource that cannot be used, with the scope of the policy if that much could be read.
pub(super) struct Unusable {
    error: DecodeError,
    outline: Option<Outline>,
}

/// Longest reason in a NACK, in the log and in the config dump, in bytes, and longest name in a NACK.
pub(super) const LONGEST: usize = 256;
/// Longest name of a resource, in bytes: those of Kubernetes have two or three parts of at most 253.
pub(super) const LONGEST_NAME: usize = 1024;

// === impl Rejected ===

impl Rejected {
    pub(super) fn policy(&self) -> Option<RefusedPolicy> {
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
    pub(super) fn initial_resource_versions(&self) -> HashMap<String, String> {
        let text = |(name, held): (&Text, &Held)| (name.to_string(), held.version.to_string());
        let mut versions: HashMap<String, String> = self.versions.iter().map(text).collect();
        for name in self.rejected.keys().filter(|name| !name.is_empty()) {
            versions.entry(name.clone()).or_default();
        }
        versions
    }

    /// Decodes resources; nothing is recorded yet.
    pub(super) fn decode<T>(
        &mut self,
        kind: Kind,
        resources: Vec<discovery::Resource>,
        decode: Decode<T>,
        mut bounds: Bounds,
        texts: &mut Interner,
    ) -> Decoded<T> {
        self.synced = true;
        let mut decoded = Decoded { accepted: Vec::with_capacity(resources.len()), rejected: Vec::new() };
        // Aliases matter to on-demand subscriptions only: a workload is found by its addresses anyway.
        for discovery::Resource { version, resource, name, aliases: _ } in resources {
            let held = self.versions.get(name.as_str()).map_or(0, Held::cost);
            let size = resource.as_ref().map_or(0, |any| any.value.len()) + name.len() + version.len();
            let outcome = bounds
                .admit(&name, size, held)
                .and_then(|()| body(kind, resource))
                .map_err(Unusable::from)
                .and_then(|bytes| decode(&name, &bytes, texts));
            match outcome {
                Ok(one) => {
                    let size = u32::try_from(size).unwrap_or(u32::MAX);
                    decoded.accepted.push((one, Held { version: texts.name(&version), size }));
                }
                Err(Unusable { error, outline }) => {
                    let reason = short(&error.to_string(), LONGEST).to_owned();
                    let name = short(&name, LONGEST_NAME).to_owned();
                    decoded.rejected.push(Rejected { rejection: Rejection { kind, name, reason }, outline });
                }
            }
        }
        decoded
    }

    /// Records the versions of accepted resources.
    pub(super) fn commit<T>(
        &mut self,
        accepted: Vec<(Accepted<T>, Held)>,
        held: &mut u64,
    ) -> Vec<Accepted<T>> {
        let record = |(one, new): (Accepted<T>, Held)| {
            self.rejected.remove(one.name.as_str());
            *held += new.cost();
            *held -= self.versions.insert(one.name.clone(), new).map_or(0, |old| old.cost());
            one
        };
        accepted.into_iter().map(record).collect()
    }

    /// Records why resources were rejected, of no more than `most`. A name whose new version is rejected keeps the old
    /// version: that one is held, and the server must still announce its removal.
    pub(super) fn reject(&mut self, rejected: &[Rejected], most: usize) {
        for Rejected { rejection: Rejection { name, reason, .. }, .. } in rejected {
            if self.rejected.len() < most || self.rejected.contains_key(name) {
                self.rejected.insert(name.clone(), reason.clone());
            }
        }
    }

    pub(super) fn remove(&mut self, names: &[String], held: &mut u64) {
        for name in names {
            *held -= self.versions.remove(name.as_str()).map_or(0, |old| old.cost());
            self.rejected.remove(short(name, LONGEST_NAME));
        }
    }
}

impl Held {
    pub(super) fn cost(&self) -> u64 {
        u64::from(self.size) + RESOURCE_COST
    }
}

// === impl Bounds ===

impl Bounds {
    /// Admits a resource of this size in place of one that costs `old`.
    fn admit(&mut self, name: &str, size: usize, old: u64) -> Result<(), DecodeError> {
        if name.is_empty() {
            return Err(DecodeError::NoName);
        }
        if name.len() > LONGEST_NAME {
            return Err(DecodeError::LongName(LONGEST_NAME));
        }
        if size > self.limits.resource {
            return Err(DecodeError::TooLarge { size, limit: self.limits.resource });
        }
        let new = size as u64 + RESOURCE_COST;
        // One that does not grow is always admitted.
        let held = self.held.saturating_sub(old) + new;
        if new > old && held > self.limits.budget {
            return Err(DecodeError::OverBudget(self.limits.budget));
        }
        self.held = held;
        Ok(())
    }
}

/// The beginning of a text that a control plane sent.
pub(super) fn short(text: &str, longest: usize) -> &str {
    let mut end = longest.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The bytes of a resource, if it is of the type of its response.
fn body(kind: Kind, resource: Option<prost_types::Any>) -> Result<Vec<u8>, DecodeError> {
    let any = resource.ok_or(DecodeError::Empty)?;
    if any.type_url != kind.type_url() {
        return Err(DecodeError::OtherType(any.type_url));
    }
    Ok(any.value)
}

pub(super) fn address(
    name: &str,
    bytes: &[u8],
    texts: &mut Interner,
) -> Result<Accepted<Resource>, Unusable> {
    let message = workload::Address::decode(bytes)?;
    let value = wire::address(message, texts)?;
    let name = match &value {
        Resource::Workload(workload) if workload.uid.as_str() == name => Text::from(&workload.uid),
        _ => texts.name(name),
    };
    Ok(Accepted { name, value })
}

pub(super) fn policy(name: &str, bytes: &[u8], _: &mut Interner) -> Result<Accepted<Policy>, Unusable> {
    let message = security::Authorization::decode(bytes)?;
    let outline = wire::outline(&message);
    let value = wire::policy(message).map_err(|error| Unusable { error: error.into(), outline })?;
    Ok(Accepted { name: name.into(), value })
}
