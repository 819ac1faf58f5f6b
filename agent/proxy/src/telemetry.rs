//! Telemetry of connections: their records, the access log, the metrics and their labels. Keys, names and labels are
//! ztunnel's, for existing dashboards. Decides nothing about a connection.

pub(crate) mod access_log;
pub(crate) mod baggage;
mod descriptors;
pub mod labels;
mod line_limits;
mod live_labels;
mod memory;
mod metrics;
mod record;
mod retry_metrics;

pub use access_log::report_left_out;
pub use descriptors::register_descriptors;
pub use labels::{Labels, Party, ServiceLabels};
pub use memory::register_memory;
pub use metrics::Metrics;
pub(crate) use record::{ConnectSummary, EndpointInfo, Opening, Record, RecordParts, Traffic};
