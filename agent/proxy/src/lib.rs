//! The data plane of one pod, and the east-west gateway: listeners, the way of a connection from one end to the other,
//! the table of what is open, the access log and its metrics.
//!
//! It composes what lower crates decide (state: where to, whether) and do (hbone: the tunnel; identity: the proof; sys:
//! sockets), and knows nothing of xDS, ZDS or Kubernetes. Start with [`PodProxy`] and [`gateway::Gateway`].

mod access_log;
mod app;
mod config;
mod conns;
mod dial;
pub mod error;
pub mod gateway;
mod gone;
mod inbound;
mod labels;
mod listener;
pub mod metrics;
mod names;
mod outbound;
mod own;
mod passthrough;
mod places;
mod pod;
mod record;
mod revocable;
mod running;
mod scope;
#[cfg(test)]
mod sizes;
mod turns;
mod world;

pub use config::{Config, Ports, Retry};
pub use conns::{Carrier, Conn, ConnectionsSnapshot, Open};
pub use error::Error;
pub use listener::{Bound, Listeners};
pub use metrics::Metrics;
pub use names::{NameError, Names, NoNames};
pub use own::OwnProxy;
pub use pod::{PodInfo, PodName, PodProxy};
pub use turns::Turns;
pub use world::World;
