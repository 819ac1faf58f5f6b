//! Wire messages become vocabulary here, once; whatever does not fit is refused with the field and the value.
//!
//! Growth of the contract is tolerated where ignoring it is safe (a new workload type, visibility, locality scope …);
//! a value that would change *how* or *whether* traffic may flow (a new tunnel, a new policy action) is refused, so
//! that the resource is named in a NACK instead of being half understood. Nothing is truncated, and nothing of a policy
//! is dropped. It knows nothing of streams, versions and nonces.

mod addr;
mod policy;
mod service;
mod workload;

use isthmus_proto::{security, workload as proto};

use crate::intern::Interner;
use crate::policy::{Outline, Policy};
use crate::service::Service;
use crate::workload::Workload;

/// What the resource type `istio.workload.Address` carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Resource {
    /// An endpoint.
    Workload(Workload),
    /// A service.
    Service(Service),
}

/// Why a resource was refused. Every message names the field and what it held.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field without which the resource means nothing.
    #[error("{field}: missing")]
    Missing {
        /// Path of the field.
        field: &'static str,
    },
    /// Bytes that are no address.
    #[error("{field}: {length} bytes are no IP address (4 or 16 are)")]
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
    /// A number that is no port.
    #[error("{field}: {value} is no port (0 to 65535)")]
    Port {
        /// Path of the field.
        field: &'static str,
        /// The number.
        value: u32,
    },
    /// A value of an enum that cannot be ignored.
    #[error("{field}: {value} is not supported")]
    Unsupported {
        /// Path of the field.
        field: &'static str,
        /// The number on the wire.
        value: i32,
    },
    /// A key that names no service.
    #[error("{field}: {value:?} is not <namespace>/<hostname>")]
    ServiceName {
        /// Path of the field.
        field: &'static str,
        /// The key.
        value: String,
    },
}

/// Reads an `istio.workload.Address` resource. What it has in common with others that `texts` knows is held once.
///
/// # Errors
/// When it is neither a workload nor a service, or when that does not fit.
pub fn address(wire: proto::Address, texts: &mut Interner) -> Result<Resource, WireError> {
    let proto::Address { r#type } = wire;
    match r#type.ok_or(WireError::Missing { field: "type" })? {
        proto::address::Type::Workload(workload) => workload::read(workload, texts).map(Resource::Workload),
        proto::address::Type::Service(service) => service::read(service, texts).map(Resource::Service),
    }
}

/// Reads an `istio.security.Authorization` resource. Its key is the resource's xDS name, not part of the message.
///
/// # Errors
/// When anything in it is not understood: a policy is taken whole or not at all.
pub fn policy(wire: security::Authorization) -> Result<Policy, WireError> {
    Policy::try_from(wire)
}

/// How far a policy reaches that [`policy()`] refuses; `None` when its scope is not one that we know. An action that is not
/// known counts as a denial: whatever it means, it was not meant to let more through.
#[must_use]
pub fn outline(wire: &security::Authorization) -> Option<Outline> {
    policy::outline(wire)
}

#[cfg(test)]
mod tests;
