//! Admin, metrics and readiness endpoints, and the JSON shapes that `istioctl ztunnel-config` reads.
//!
//! It knows the vocabulary and HTTP, not how anything works inside: what it shows comes through [`Source`], which the
//! root implements.

pub mod dump;
pub mod logging;
pub mod server;

use std::sync::Arc;

use isthmus_model::{Policy, Service, Workload};

use crate::dump::pods::PodView;
use crate::dump::{CertificateView, EndpointView};

/// What the endpoints show. Implemented by the root over the live parts.
pub trait Source: Send + Sync {
    /// Every workload held.
    fn workloads(&self) -> Vec<Arc<Workload>>;
    /// Every service held, with its endpoints.
    fn services(&self) -> Vec<(Arc<Service>, Vec<EndpointView>)>;
    /// Endpoints of services that have not arrived: service key, endpoints.
    fn staged(&self) -> Vec<(String, Vec<EndpointView>)>;
    /// Every policy held.
    fn policies(&self) -> Vec<Arc<Policy>>;
    /// Every certificate managed.
    fn certificates(&self) -> Vec<CertificateView>;
    /// Pods of this node; `None` when the process has none by design (the gateway).
    fn pods(&self) -> Option<Vec<PodView>>;
    /// Resources that were refused: name and reason.
    fn rejected(&self) -> Vec<(String, String)>;
    /// The configuration in force, without secrets.
    fn config(&self) -> serde_json::Value;
    /// Static configuration, as read at start.
    fn static_config(&self) -> StaticConfig;
}

/// What the local file or text held.
#[derive(Debug, Clone, Default)]
pub struct StaticConfig {
    /// Workloads.
    pub workloads: Vec<Arc<Workload>>,
    /// Services.
    pub services: Vec<Arc<Service>>,
    /// Policies.
    pub policies: Vec<Arc<Policy>>,
}
