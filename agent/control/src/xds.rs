//! Configuration over delta ADS: one stream, two types, everything of both.
//!
//! [`session`] is the protocol without I/O; [`run`] keeps a stream open around it. While there is none, everybody keeps
//! what was applied last.

mod incoming;
pub mod node;
pub mod session;
mod stream;

use std::sync::{Arc, Mutex, PoisonError};

use isthmus_model::{Policy, PolicyKey, RefusedPolicy, Resource};

use crate::channel::Server;
pub use node::{Metadata, Node};
pub use session::Kind;
pub use stream::run;

/// Settings of the client.
#[derive(Debug, Clone)]
pub struct Config {
    /// The control plane.
    pub server: Server,
    /// Who we say we are.
    pub node: Node,
    /// What is refused at present, for the config dump; keep a clone.
    pub rejections: Rejections,
}

/// Where configuration goes. Each call is one push; its upserts come before its removals.
pub trait Sink: Send + Sync {
    /// Workloads and services that changed, and names (`<uid>`, `<namespace>/<hostname>`) that are gone.
    fn addresses(&self, upserts: Vec<Resource>, removed: Vec<String>);
    /// Policies that changed, that are gone, and that were refused: of those whoever enforces policies keeps the version
    /// that it has, and without one lets nothing through that they might have refused.
    fn policies(
        &self,
        upserts: Vec<(PolicyKey, Policy)>,
        removed: Vec<PolicyKey>,
        refused: Vec<RefusedPolicy>,
    );
}

/// Resources that are refused at present. Clones share the list.
#[derive(Debug, Clone, Default)]
pub struct Rejections(Arc<Mutex<Vec<Rejection>>>);

/// One refused resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Its type.
    pub kind: Kind,
    /// Its xDS name.
    pub name: String,
    /// What is wrong with it.
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
