//! What the mesh looks like, and what to do about it: immutable snapshots with one writer, the resolving of outbound
//! and inbound destinations, load balancing, mesh names and authorization.
//!
//! Everything but the handle is pure: it takes a [`Snapshot`] (and a random generator where it chooses) and returns a
//! verdict *with its reason*. It must not know of sockets, xDS or TLS.

mod authorize;
mod balance;
mod batch;
mod cidr;
mod endpoints;
mod gateway;
mod handle;
mod hints;
mod inbound;
mod index;
pub mod names;
mod policies;
mod resolve;
pub mod route;
mod services;
mod snapshot;
mod table;
mod target;
mod workloads;

pub use authorize::{Denied, Permit, Rejection, authorize};
pub use batch::{Applied, Batch};
pub use gateway::{GatewayRefusal, GatewayTarget, gateway_target};
pub use handle::{Changes, State};
pub use hints::{Candidate, Hints, NoHints, Role};
pub use inbound::{InboundError, InboundTarget, inbound_target, service_label};
pub use policies::{Applicable, InForce};
pub use resolve::{resolve, resolve_with};
pub use snapshot::{Endpoint, Options, Snapshot};

#[cfg(test)]
mod fixture;
