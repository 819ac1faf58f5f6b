//! A look through the table for as long as somebody likes to read it: only the keys are taken at once, connections a
//! few at a time, so that nobody who opens or closes one waits for the reader.

use super::connections::{Connection, Connections, Table};

/// Connections that are copied under one lock.
const PAGE: usize = 128;

/// The open connections of a pod, to be looked through. It keeps none of them open.
#[derive(Debug, Clone)]
pub struct OpenConnections(Connections);

impl Connections {
    /// A view for readers that take their time.
    pub(crate) fn open(&self) -> OpenConnections {
        OpenConnections(self.clone())
    }
}

impl OpenConnections {
    /// Those to the pod, oldest first. One that closes meanwhile may be left out.
    pub fn inbound(&self) -> impl Iterator<Item = Connection> + Send + use<> {
        let keys = self.0.lock().inbound.keys().copied().collect();
        pages(self.0.clone(), keys, |table, key| table.inbound.get(&key).map(|judged| judged.conn.clone()))
    }

    /// Those from the pod, likewise.
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
        let held = table.lock();
        let found: Vec<Connection> = page.iter().filter_map(|key| find(&held, *key)).collect();
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
    fn nobody_waits_for_who_reads_and_what_closes_meanwhile_is_left_out() {
        let table = Connections::default();
        let mut held: Vec<_> = (0..1000).map(|port| table.outbound(conn(port))).collect();
        let facts =
            Facts { peer: None, source: [10, 0, 0, 1].into(), destination: ([10, 0, 0, 2], 80).into() };
        let _inbound = table.inbound(conn(7), facts);
        let open = OpenConnections(table.clone());
        let mut reader = open.outbound();
        assert_eq!(reader.next(), Some(conn(0)));
        // The table is not locked while the reader stands still: this would wait for ever.
        held.truncate(500);
        held.push(table.outbound(conn(5000)));
        let rest: Vec<Connection> = reader.collect();
        assert_eq!(rest, (1..500).map(conn).collect::<Vec<_>>());
        assert_eq!(open.inbound().collect::<Vec<_>>(), [conn(7)]);
    }
}
