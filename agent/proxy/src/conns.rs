//! The table of a pod's open connections: what admin shows, and what a policy change is held against. It closes nothing
//! itself: it tells the owner of a connection to close.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isthmus_model::Facts;
use tokio::sync::oneshot;

use crate::error::Refusal;

/// How a connection is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// Plain TCP.
    Tcp,
    /// One tunnel.
    Hbone,
    /// A tunnel in a tunnel.
    DoubleHbone,
}

/// One open connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conn {
    /// The client.
    pub src: SocketAddr,
    /// What the client asked for: an address, or the service's name when the far end sent one. `None` when inbound and
    /// no service was named.
    pub original_dst: Option<String>,
    /// Where it goes.
    pub actual_dst: SocketAddr,
    /// How it is carried.
    pub protocol: Carrier,
}

/// The open connections of one pod at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectionsSnapshot {
    /// To the pod.
    pub inbound: Vec<Conn>,
    /// From the pod.
    pub outbound: Vec<Conn>,
}

/// The table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Connections(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    inbound: HashMap<u64, Judged>,
    outbound: HashMap<u64, Conn>,
}

#[derive(Debug)]
struct Judged {
    conn: Conn,
    facts: Facts,
    close: oneshot::Sender<Refusal>,
}

/// A connection's place in the table; it leaves when this is dropped.
#[derive(Debug)]
pub(crate) struct Tracked {
    id: u64,
    table: Connections,
    close: Option<oneshot::Receiver<Refusal>>,
}

// === impl Carrier ===

impl Carrier {
    /// As the config dump names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Hbone => "HBONE",
            Self::DoubleHbone => "DOUBLEHBONE",
        }
    }
}

// === impl Connections ===

impl Connections {
    /// Enters an inbound connection with the facts it is judged by.
    pub(crate) fn inbound(&self, conn: Conn, facts: Facts) -> Tracked {
        let (close, closed) = oneshot::channel();
        let mut table = self.lock();
        let id = table.id();
        table.inbound.insert(id, Judged { conn, facts, close });
        Tracked { id, table: self.clone(), close: Some(closed) }
    }

    /// Enters an outbound connection.
    pub(crate) fn outbound(&self, conn: Conn) -> Tracked {
        let mut table = self.lock();
        let id = table.id();
        table.outbound.insert(id, conn);
        Tracked { id, table: self.clone(), close: None }
    }

    /// What is open now.
    pub(crate) fn snapshot(&self) -> ConnectionsSnapshot {
        let table = self.lock();
        ConnectionsSnapshot {
            inbound: table.inbound.values().map(|judged| judged.conn.clone()).collect(),
            outbound: table.outbound.values().cloned().collect(),
        }
    }

    /// Judges every inbound connection again and tells the owners of those that are refused. The table is not locked
    /// while `judge` runs. Answers how many were refused.
    pub(crate) fn recheck(&self, judge: impl Fn(&Facts) -> Result<(), Refusal>) -> usize {
        let facts: Vec<(u64, Facts)> =
            self.lock().inbound.iter().map(|(id, judged)| (*id, judged.facts.clone())).collect();
        let refused: Vec<(u64, Refusal)> =
            facts.into_iter().filter_map(|(id, facts)| judge(&facts).err().map(|why| (id, why))).collect();
        let mut table = self.lock();
        let mut told = 0;
        for (id, why) in refused {
            if let Some(judged) = table.inbound.remove(&id) {
                // Its owner may be ending by itself.
                told += usize::from(judged.close.send(why).is_ok());
            }
        }
        told
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing panics while the table is half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

// === impl Tracked ===

impl Tracked {
    /// Resolves when the connection must be closed, with the reason.
    pub(crate) async fn refused(&mut self) -> Refusal {
        if let Some(close) = self.close.as_mut() {
            // The entry lives as long as this does, so its sender is dropped only by sending, once.
            let why = close.await;
            self.close = None;
            if let Ok(why) = why {
                return why;
            }
        }
        std::future::pending().await
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        table.inbound.remove(&self.id);
        table.outbound.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conn(port: u16) -> Conn {
        Conn {
            src: ([10, 0, 0, 1], port).into(),
            original_dst: None,
            actual_dst: ([10, 0, 0, 2], 80).into(),
            protocol: Carrier::Hbone,
        }
    }

    fn facts(port: u16) -> Facts {
        Facts { peer: None, source: [10, 0, 0, 1].into(), destination: ([10, 0, 0, 2], port).into() }
    }

    #[tokio::test]
    async fn a_change_closes_what_it_refuses_and_nothing_else() {
        let table = Connections::default();
        let (mut kept, mut cut) = (table.inbound(conn(1), facts(80)), table.inbound(conn(2), facts(81)));
        let outbound = table.outbound(conn(3));
        let judge = |facts: &Facts| match facts.destination.port() {
            81 => Err(Refusal { policy: Some("ns/p".into()), reason: "refused".into() }),
            _ => Ok(()),
        };
        assert_eq!(table.recheck(judge), 1);
        assert_eq!(cut.refused().await.policy, Some("ns/p".into()));
        assert_eq!(table.snapshot(), ConnectionsSnapshot { inbound: vec![conn(1)], outbound: vec![conn(3)] });
        assert_eq!(table.recheck(judge), 0, "it is told once");
        tokio::select! {
            biased;
            _ = kept.refused() => panic!("it was not refused"),
            () = std::future::ready(()) => {}
        }
        drop((kept, cut, outbound));
        assert_eq!(table.snapshot(), ConnectionsSnapshot::default());
    }
}
