//! What is counted and logged of a connection: its record, the access log, the metrics and their labels.

pub(crate) mod access_log;
pub(crate) mod baggage;
pub mod labels;
mod live_labels;
mod metrics;
mod record;
mod retry_metrics;

pub use labels::{Labels, Party, ServiceLabels};
pub use metrics::Metrics;
pub(crate) use record::{End, Opening, Record, Traffic};
