//! Admin, metrics and readiness endpoints, and the JSON shapes that `istioctl ztunnel-config` reads.
//!
//! It knows the model and HTTP, and nothing of the other parts: what it shows comes through [`Source`] and [`View`], which
//! the binary implements.

pub mod build;
pub mod dump;
pub mod logging;
mod query;
pub mod server;

use std::sync::Arc;

use isthmus_model::{NamespacedHostname, Policy, Service, Workload};

use crate::dump::pods::PodView;
use crate::dump::{CertificateView, EndpointView};

/// An iterator over borrowed objects.
pub type Each<'a, T> = Box<dyn Iterator<Item = T> + Send + 'a>;

/// Source of the config dump.
pub trait Source: Send + Sync {
    /// The current snapshot of the mesh; held until the whole dump is written.
    fn pin(&self) -> Arc<dyn View>;
    /// Every managed certificate, ordered by identity.
    fn certificates(&self) -> Each<'_, CertificateView>;
    /// Enrolled pods of this node, ordered by UID; `None` for a role without pods (the gateway).
    fn pods(&self) -> Option<Each<'_, PodView<'_>>>;
    /// Rejected xDS resources: name and reason.
    fn rejected(&self) -> Vec<(String, String)>;
    /// The configuration in force, without secrets.
    fn config(&self) -> serde_json::Value;
    /// The static configuration, as read at start.
    fn static_config(&self) -> Arc<dyn View>;
    /// Release of Istio that the process was deployed for.
    fn istio_version(&self) -> String;
}

/// A snapshot of the mesh. Objects are borrowed, in any order.
pub trait View: Send + Sync {
    /// Every workload.
    fn workloads(&self) -> Each<'_, &Workload>;
    /// Every service.
    fn services(&self) -> Each<'_, &Service>;
    /// Services that workloads refer to and that have not arrived.
    fn staged(&self) -> Each<'_, &NamespacedHostname>;
    /// Every policy.
    fn policies(&self) -> Each<'_, &Policy>;
    /// Endpoints of a service, by uid.
    fn endpoints<'a>(&'a self, service: &'a NamespacedHostname) -> Each<'a, EndpointView<'a>>;
}
