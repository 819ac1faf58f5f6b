//! xDS client: delta ADS, one stream, wildcard subscriptions to both resource types.
//!
//! [`session`] is the protocol without I/O; [`run`] keeps a stream open around it. Without a stream the last applied
//! configuration stays in force.

mod incoming;
pub mod node;
pub mod session;
mod stream;
mod warnings;

use std::sync::{Arc, Mutex, PoisonError};

use isthmus_model::{Policy, PolicyKey, RefusedPolicy, Resource};

use crate::channel::Server;
pub use node::{Metadata, Node};
pub use session::{Kind, Limits};
pub use stream::run;

/// Settings of the client.
#[derive(Debug, Clone)]
pub struct Config {
    /// The control plane.
    pub server: Server,
    /// The node that the client introduces itself as.
    pub node: Node,
    /// Receives the rejected resources, for the config dump.
    pub rejections: Rejections,
    /// What all resources of the mesh may cost, and one response, in bytes. `ISTHMUS_CONFIG_BUDGET`.
    pub budget: u64,
}

/// Receiver of configuration. Each call is one push; upserts are to be applied before removals.
pub trait Sink: Send + Sync {
    /// Changed workloads and services, and names of removed ones (`<uid>`, `<namespace>/<hostname>`).
    fn addresses(&self, upserts: Vec<Resource>, removed: Vec<String>);
    /// Changed, removed and rejected policies. Of a rejected policy the last accepted version stays in force; without one
    /// the receiver must deny everything that the policy might have denied.
    fn policies(
        &self,
        upserts: Vec<(PolicyKey, Policy)>,
        removed: Vec<PolicyKey>,
        refused: Vec<RefusedPolicy>,
    );
}

/// Resources whose latest version is rejected. Clones share the list.
#[derive(Debug, Clone, Default)]
pub struct Rejections(Arc<Mutex<Vec<Rejection>>>);

/// One rejected resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Its type.
    pub kind: Kind,
    /// Its xDS name.
    pub name: String,
    /// Why it was rejected.
    pub reason: String,
}

impl Rejections {
    /// The list, by type and name.
    #[must_use]
    pub fn list(&self) -> Vec<Rejection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, list: Vec<Rejection>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = list;
    }
}

#[cfg(test)]
mod tests;
