//! Converts wire messages to the model. What the model cannot represent is rejected, with the field and the value.
//!
//! Unknown values are ignored where that is safe (a new workload type, visibility, locality scope …). A value that changes
//! *how* or *whether* traffic may flow (a new tunnel, a new policy action) is rejected, so that the resource is named in a
//! NACK instead of being misunderstood. No part of a policy is dropped. It knows nothing of streams, versions and nonces.

mod addr;
mod policy;
mod service;
mod workload;

use isthmus_proto::{security, workload as proto};

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

/// Why a resource was rejected. Every message names the field and its value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A required field is missing.
    #[error("{field}: missing")]
    Missing {
        /// Path of the field.
        field: &'static str,
    },
    /// Not the bytes of an address.
    #[error("{field}: {length} bytes are not an IP address (4 or 16 are)")]
    Address {
        /// Path of the field.
        field: &'static str,
        /// How many bytes there were.
        length: usize,
    },
    /// A prefix longer than its address.
    #[error("{field}: prefix length {value} is longer than the address ({max} bits)")]
    Prefix {
        /// Path of the field.
        field: &'static str,
        /// The length.
        value: u32,
        /// Bits of the address.
        max: u8,
    },
    /// Not a port number.
    #[error("{field}: {value} is not a port (0 to 65535)")]
    Port {
        /// Path of the field.
        field: &'static str,
        /// The number.
        value: u32,
    },
    /// An unknown enum value that cannot be ignored.
    #[error("{field}: {value} is not supported")]
    Unsupported {
        /// Path of the field.
        field: &'static str,
        /// The number on the wire.
        value: i32,
    },
    /// Not the key of a service.
    #[error("{field}: {value:?} is not <namespace>/<hostname>")]
    ServiceName {
        /// Path of the field.
        field: &'static str,
        /// The key.
        value: String,
    },
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
