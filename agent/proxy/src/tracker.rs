//! The table of a pod's open connections: what the admin endpoint shows, and what a change of policy is held against.

mod connections;
mod page;

pub use connections::{Connection, ConnectionsSnapshot};
pub(crate) use connections::{Connections, Rechecked, Tracked, Verdict};
pub use page::OpenConnections;
