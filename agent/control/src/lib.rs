//! Clients of the control plane: configuration over delta ADS, certificates from the CA, and the local file that can
//! stand in for the former.
//!
//! What arrives is turned into vocabulary here and handed to a [`xds::Sink`]; how it is stored, and what it means for a
//! connection, is not known. What is refused is named: in the NACK, in the log and in a metric.

pub mod ca;
pub mod channel;
pub mod local;
pub mod metrics;
pub mod xds;

pub use channel::{ConfigError, RootSource, Server, TokenSource};
pub use isthmus_model::Resource;
pub use metrics::Metrics;
