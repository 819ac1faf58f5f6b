//! The agent's side of ZDS: which pods of this node the agent serves, as the node role tells it.
//!
//! It owns the connection, the table of pods and the answers. What serving a pod means is [`PodRuntime`]'s; netfilter
//! and Kubernetes are the node role's. An error is an answer and a new connection, never the process' end.

pub mod manager;
pub mod metrics;
pub mod pods;
pub mod runtime;
pub mod table;
pub mod wire;
mod zds;

pub use manager::{Config, run};
pub use metrics::Metrics;
pub use pods::{PodEntry, PodState, Pods};
pub use runtime::{Pod, PodInfo, PodRuntime, StartError, Stop};
