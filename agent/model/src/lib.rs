//! The model of the mesh as plain typed values: identities, addresses, workloads, services, policies.
//!
//! No I/O, no locks, no clocks. Wire messages are converted once, in [`wire`], which rejects what it cannot represent and
//! names the field.

pub mod addr;
pub mod admit;
pub mod identity;
pub mod intern;
pub mod name;
pub mod pod;
pub mod policy;
pub mod ports;
pub mod service;
pub mod trust;
pub mod wire;
pub mod workload;

pub use addr::{Authority, GatewayAddress, GatewayDestination, NetworkAddress};
pub use identity::{SpiffeId, TrustDomain};
pub use intern::Interner;
pub use name::{
    ClusterId, Hostname, Namespace, NamespacedHostname, NetworkId, NodeName, PodUid, PolicyKey,
    ServiceAccount, Text, WorkloadUid,
};
pub use pod::PodRef;
pub use policy::{Action, Facts, Outline, Policy, RefusedPolicy, Scope};
pub use ports::{AgentPorts, HBONE_PORT, LOCAL_MARK};
pub use service::{IpFamilies, LoadBalancer, Service, Visibility};
pub use trust::TrustDomains;
pub use wire::{Resource, WireError};
pub use workload::{Health, Locality, NetworkMode, Protocol, Workload};
