//! The data plane of one pod, and the east-west gateway: listeners, the path of a connection from accept to close, the
//! table of open connections, the access log and the metrics.
//!
//! It combines the decisions and mechanisms of lower crates (state: routes and authorization; hbone: tunnels; identity:
//! peer verification; sys: sockets), and knows nothing of xDS, ZDS or Kubernetes. Start with [`PodProxy`] and
//! [`gateway::Gateway`].
//!
//! Layers of modules; imports go down only (`tests/e2e/tests/layering` checks it):
//!
//! ```text
//! pod agent_pod                 one pod; the pod that the agent itself runs in
//! handover                      taking a pod's connections out of this process, and taking them over
//! gateway                       east-west gateway: HBONE, SNI and TCP listeners
//! inbound   outbound            siblings: ports 15008 and 15006; port 15001
//! server                        server side of a tunnel: handshake, driving its streams
//! dial                          sockets, tunnels and sessions to upstreams
//! context                       state shared by the connections of the process, of one pod
//! accept                        listeners, accept loop, handshake slots, lifecycle
//! telemetry                     connection record, access log, metrics and their labels
//! tracker                       table of open connections
//! retry                         retry budget, outlier ejection, causes: no I/O
//! config error host_resolver types
//! ```

mod accept;
mod agent_pod;
mod config;
mod context;
mod dial;
pub mod error;
pub mod gateway;
pub mod handover;
mod host_resolver;
mod inbound;
mod outbound;
mod pod;
mod retry;
mod server;
#[cfg(test)]
mod sizes;
pub mod telemetry;
mod tracker;
mod types;

pub use accept::{BoundListener, Listeners};
pub use agent_pod::AgentPodProxy;
pub use config::{Config, Retry};
pub use context::ProxyContext;
pub use error::Error;
pub use host_resolver::{HostLookupError, HostResolver, NoHostResolver};
pub use pod::PodProxy;
pub use telemetry::{Metrics, register_descriptors, register_memory};
pub use tracker::{Connection, ConnectionsSnapshot, OpenConnections};
pub use types::Carrier;
