//! The agent's side of ZDS: which pods of this node the agent serves, as the node role reports them.
//!
//! It owns the connection, the table of pods and the acks. How a pod is served is behind [`PodRuntime`]; redirection
//! rules and Kubernetes belong to the node role. An error ends in a nack or in a reconnect, never in the end of the
//! process.

pub mod manager;
pub mod metrics;
pub mod pod_list;
pub mod runtime;
pub mod table;
pub mod wire;
mod zds;

pub use manager::{Config, run};
pub use metrics::Metrics;
pub use pod_list::{PodEntry, PodList, PodState};
pub use runtime::{Blame, EnrolledPod, PodRuntime, StartError, StopMode};
