//! The state of the mesh and the decisions on it: immutable snapshots with one writer, resolution of outbound and
//! inbound destinations, load balancing, DNS names and authorization.
//!
//! Everything but the handle is pure: it takes a [`Snapshot`] (and a random generator where it chooses) and returns a
//! decision *with its reason*. It must not know of sockets, xDS or TLS.

mod authorize;
mod avoid;
mod balance;
mod batch;
mod cidr;
pub mod dns;
mod endpoint;
mod gateway;
mod handle;
mod host_address;
mod inbound;
mod index;
mod options;
mod policies;
mod resolve;
pub mod route;
mod services;
mod snapshot;
mod table;
mod target;
mod workloads;

pub use authorize::{Denied, Permit, Rejection, authorize};
pub use avoid::{Avoid, Ejected, EjectedEndpoints, Ejection};
pub use batch::{Applied, Batch};
pub use endpoint::{EndpointGroup, EndpointId, HostAddress};
pub use gateway::{GatewayRefusal, GatewayTarget, gateway_target};
pub use handle::{Changes, State};
pub use host_address::choose_address;
pub use inbound::{InboundError, InboundTarget, inbound_target, service_label};
pub use options::Options;
pub use policies::{ApplicablePolicy, EffectivePolicies};
pub use resolve::{resolve, resolve_avoiding};
pub use snapshot::{Addressee, Endpoint, Snapshot};

#[cfg(test)]
mod fixture;
