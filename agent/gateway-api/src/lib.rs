//! The Gateway API for `isthmus gateway`: it watches the process' Gateway, the routes that attach to it and what they
//! refer to, translates them to listeners, and writes their status. It must not know how connections are carried, nor
//! anything of xDS: the listeners are plain values, which the composition root hands to the proxy.
//!
//! [`watch`] talks to the API server; everything else is pure. Every replica computes the same status from the same
//! objects and patches only what differs, with the resource version it has seen, so there is no leader and no flapping.

mod budget;
mod kinds;
mod objects;
mod status;
mod store;
mod translate;
pub mod watch;

use std::collections::{BTreeMap, BTreeSet};

use isthmus_model::Authority;

/// `controllerName` of GatewayClasses whose Gateways this gateway serves and reports the status of.
pub const CONTROLLER: &str = "isthmus.io/east-west-gateway";
/// The GatewayClass of our own.
pub const CLASS: &str = "isthmus-east-west";
/// The label of the pods and the Service of a Gateway: its name.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// Which Gateway the process serves, and what limits it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Namespace of the Gateway: that of the process' pod.
    pub namespace: String,
    /// Name of the Gateway.
    pub name: String,
    /// The network that the process serves; the Gateway's label must say the same.
    pub network: String,
    /// DNS domain of the cluster's services, `cluster.local` by default.
    pub cluster_domain: String,
    /// Ports that the process needs itself.
    pub reserved_ports: BTreeSet<u16>,
}

/// What a Gateway asks to listen for, by port.
pub type Listeners = BTreeMap<u16, Listener>;

/// What one port carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listener {
    /// HBONE.
    Hbone,
    /// TLS, passed through by its server name.
    Tls(TlsRoutes),
    /// Plain TCP.
    Tcp(Vec<Backend>),
}

/// Backends by the server name of TLS. Names are in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsRoutes {
    /// By exact name.
    pub names: BTreeMap<String, Vec<Backend>>,
    /// By what follows `*.` in a wildcard.
    pub suffixes: BTreeMap<String, Vec<Backend>>,
    /// For any other name.
    pub otherwise: Option<Vec<Backend>>,
    /// Whether names of sidecars (`outbound_.80_._.hello.sample.svc.cluster.local`) lead to global services.
    pub auto_passthrough: bool,
}

/// One backend of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// A service's port by name; `None` when it does not exist or may not be referred to: its share of the connections
    /// is refused.
    pub target: Option<Authority>,
    /// Its share among the backends of the route.
    pub weight: u32,
}
