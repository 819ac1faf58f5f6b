//! Admin, metrics and readiness endpoints, and the JSON shapes that `istioctl ztunnel-config` reads.
//!
//! It knows the vocabulary and HTTP, not how anything works inside: what it shows comes through [`Source`] and [`View`],
//! which the root implements.

pub mod build;
pub mod dump;
pub mod logging;
mod query;
pub mod server;

use std::sync::Arc;

use isthmus_model::{NamespacedHostname, Policy, Service, Workload};

use crate::dump::pods::PodView;
use crate::dump::{CertificateView, EndpointView};

/// Objects that are lent one by one.
pub type Each<'a, T> = Box<dyn Iterator<Item = T> + Send + 'a>;

/// What the endpoints show. Implemented by the root over the live parts.
pub trait Source: Send + Sync {
    /// The mesh as it is now; it is held until the whole dump was read.
    fn pin(&self) -> Arc<dyn View>;
    /// Every certificate managed, by identity.
    fn certificates(&self) -> Each<'_, CertificateView>;
    /// Pods of this node, by UID; `None` when the process has none by design (the gateway).
    fn pods(&self) -> Option<Each<'_, PodView<'_>>>;
    /// Resources that were refused: name and reason.
    fn rejected(&self) -> Vec<(String, String)>;
    /// The configuration in force, without secrets.
    fn config(&self) -> serde_json::Value;
    /// Static configuration, as read at start.
    fn static_config(&self) -> Arc<dyn View>;
    /// Which release of the mesh this process was deployed for.
    fn istio_version(&self) -> String;
}

/// One picture of the mesh. Nothing is copied out of it, and the order in which it lends does not matter.
pub trait View: Send + Sync {
    /// Every workload held.
    fn workloads(&self) -> Each<'_, &Workload>;
    /// Every service held.
    fn services(&self) -> Each<'_, &Service>;
    /// Services that have endpoints but have not arrived themselves.
    fn staged(&self) -> Each<'_, &NamespacedHostname>;
    /// Every policy held.
    fn policies(&self) -> Each<'_, &Policy>;
    /// Endpoints of a service, by uid.
    fn endpoints<'a>(&'a self, service: &'a NamespacedHostname) -> Each<'a, EndpointView<'a>>;
}
