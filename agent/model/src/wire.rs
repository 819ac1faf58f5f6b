//! Converts wire messages to the model. What the model cannot represent is rejected, with the field and the value.
//!
//! Unknown values are ignored where that is safe (a new workload type, visibility, locality scope …). A value that changes
//! *how* or *whether* traffic may flow (a new tunnel, a new policy action) is rejected, so that the resource is named in a
//! NACK instead of being misunderstood. No part of a policy is dropped. It knows nothing of streams, versions and nonces.

mod addr;
mod error;
mod policy;
mod service;
mod workload;

use isthmus_proto::{security, workload as proto};

pub use self::error::WireError;
use crate::intern::Interner;
use crate::policy::{Outline, Policy};
use crate::service::Service;
use crate::workload::Workload;

/// A resource of type `istio.workload.Address`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Resource {
    /// An endpoint.
    Workload(Workload),
    /// A service.
    Service(Service),
}

/// Converts an `istio.workload.Address` resource. Texts are interned in `texts`.
///
/// # Errors
/// When it is neither a workload nor a service, or has an invalid field.
pub fn address(wire: proto::Address, texts: &mut Interner) -> Result<Resource, WireError> {
    let proto::Address { r#type } = wire;
    match r#type.ok_or(WireError::Missing { field: "type" })? {
        proto::address::Type::Workload(workload) => workload::read(workload, texts).map(Resource::Workload),
        proto::address::Type::Service(service) => service::read(service, texts).map(Resource::Service),
    }
}

/// Converts an `istio.security.Authorization` resource. Its key is the resource's xDS name, which is not in the message.
///
/// # Errors
/// When anything in it is unknown: a policy is accepted whole or not at all.
pub fn policy(wire: security::Authorization) -> Result<Policy, WireError> {
    Policy::try_from(wire)
}

/// The reach of a policy that [`policy()`] rejects; `None` when its scope is unknown. An unknown action counts as a DENY,
/// the safe choice.
#[must_use]
pub fn outline(wire: &security::Authorization) -> Option<Outline> {
    policy::outline(wire)
}

#[cfg(test)]
mod tests;
