//! The table of a pod's open connections: the admin endpoint shows it, and a policy change is checked against it.
//! Does not know how policies are evaluated or connections served.

mod connections;
mod page;

pub use connections::{Connection, ConnectionsSnapshot};
pub(crate) use connections::{Connections, RecheckOutcome, RecheckSummary, Tracked};
pub use page::OpenConnections;
