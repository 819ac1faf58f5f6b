//! Clients of the control plane: configuration over delta ADS, certificates from the CA, and the local file that can
//! replace the former.
//!
//! Resources are decoded into the model and handed to a [`xds::Sink`]. This crate does not know how they are stored or
//! what they mean for a connection. A rejected resource is named in the NACK, in the log and in a metric.

pub mod ca;
pub mod channel;
pub mod local;
pub mod metrics;
pub mod xds;

pub use channel::{ConfigError, RootSource, Server, TokenSource};
pub use isthmus_model::Resource;
pub use metrics::Metrics;
