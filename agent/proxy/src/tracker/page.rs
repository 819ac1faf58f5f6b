//! Iterates over the connection table for slow readers (the config dump): copies the keys first, then the connections
//! page by page, so that opening and closing connections never waits for a reader.

use super::connections::{Connection, Connections, Table};

/// Connections that are copied while the lock is held once.
const PAGE: usize = 128;

/// A view of the open connections of a pod. It does not keep them open.
#[derive(Debug, Clone)]
pub struct OpenConnections(Connections);

impl Connections {
    /// A view for slow readers.
    pub(crate) fn open(&self) -> OpenConnections {
        OpenConnections(self.clone())
    }
}

impl OpenConnections {
    /// Connections to the pod, oldest first. One that closes during the iteration may be missing.
    pub fn inbound(&self) -> impl Iterator<Item = Connection> + Send + use<> {
        let keys = self.0.lock().inbound.keys().copied().collect();
        pages(self.0.clone(), keys, |table, key| table.inbound.get(&key).map(|entry| entry.conn.clone()))
    }

    /// Connections from the pod, likewise.
    pub fn outbound(&self) -> impl Iterator<Item = Connection> + Send + use<> {
        let keys = self.0.lock().outbound.keys().copied().collect();
        pages(self.0.clone(), keys, |table, key| table.outbound.get(&key).cloned())
    }
}

fn pages(
    table: Connections,
    mut keys: Vec<u64>,
    find: fn(&Table, u64) -> Option<Connection>,
) -> impl Iterator<Item = Connection> + Send {
    keys.sort_unstable();
    let mut keys = keys.into_iter();
    let page = move || {
        let page: Vec<u64> = keys.by_ref().take(PAGE).collect();
        let locked = table.lock();
        let found: Vec<Connection> = page.iter().filter_map(|key| find(&locked, *key)).collect();
        (!page.is_empty()).then_some(found)
    };
    std::iter::from_fn(page).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Carrier;
    use isthmus_model::Facts;

    fn conn(port: u16) -> Connection {
        Connection {
            src: ([10, 0, 0, 1], port).into(),
            original_dst: None,
            actual_dst: ([10, 0, 0, 2], 80).into(),
            protocol: Carrier::Hbone,
        }
    }

    #[test]
    fn a_slow_reader_blocks_no_connection_and_skips_those_that_close() {
        let table = Connections::default();
        let mut open_connections: Vec<_> = (0..1000).map(|port| table.outbound(conn(port))).collect();
        let facts =
            Facts { peer: None, source: [10, 0, 0, 1].into(), destination: ([10, 0, 0, 2], 80).into() };
        let _inbound = table.inbound(conn(7), facts);
        let open = OpenConnections(table.clone());
        let mut reader = open.outbound();
        assert_eq!(reader.next(), Some(conn(0)));
        // Deadlocks if the table is locked between two reads.
        open_connections.truncate(500);
        open_connections.push(table.outbound(conn(5000)));
        let rest: Vec<Connection> = reader.collect();
        assert_eq!(rest, (1..500).map(conn).collect::<Vec<_>>());
        assert_eq!(open.inbound().collect::<Vec<_>>(), [conn(7)]);
    }
}
