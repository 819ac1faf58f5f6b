//! The table of a pod's open connections: what admin shows, and what a policy change is held against. It closes nothing
//! itself: it tells the owner of a connection to close.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isthmus_model::Facts;
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::Instant;

use crate::types::{Carrier, Refusal};

/// How long a look through the table may keep its thread from the connections that it serves.
const SLICE: Duration = Duration::from_micros(500);

/// One open connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
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
    pub inbound: Vec<Connection>,
    /// From the pod.
    pub outbound: Vec<Connection>,
}

/// The table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Connections(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
pub(super) struct Table {
    next: u64,
    pub(super) inbound: HashMap<u64, Judged>,
    pub(super) outbound: HashMap<u64, Connection>,
}

#[derive(Debug)]
pub(super) struct Judged {
    pub(super) conn: Connection,
    facts: Facts,
    close: oneshot::Sender<Refusal>,
    /// Since when a policy that applies to it has been missing.
    undecided: Option<Instant>,
}

/// What is said of an open connection when it is judged again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may stay.
    Allowed,
    /// It may stay for a while: this is what it will be refused with unless more is known by then.
    Undecided(Refusal),
    /// It must be closed.
    Refused(Refusal),
}

/// What came of judging every open connection again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Rechecked {
    /// How many were told to close.
    pub(crate) refused: usize,
    /// When the first one that is undecided will have waited for long enough.
    pub(crate) next: Option<Instant>,
}

/// A connection's place in the table; it leaves when this is dropped.
#[derive(Debug)]
pub(crate) struct Tracked {
    id: u64,
    table: Connections,
    close: Option<oneshot::Receiver<Refusal>>,
}

// === impl Connections ===

impl Connections {
    /// Enters an inbound connection with the facts it is judged by.
    pub(crate) fn inbound(&self, conn: Connection, facts: Facts) -> Tracked {
        let (close, closed) = oneshot::channel();
        let mut table = self.lock();
        let id = table.id();
        table.inbound.insert(id, Judged { conn, facts, close, undecided: None });
        Tracked { id, table: self.clone(), close: Some(closed) }
    }

    /// Enters an outbound connection.
    pub(crate) fn outbound(&self, conn: Connection) -> Tracked {
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

    /// Judges every inbound connection again and tells the owners of those that are refused, or have been undecided for
    /// longer than `grace`. The table is not locked while `judge` runs, and every other task gets its turn between two
    /// connections. Connections that are entered meanwhile are not looked at: they are judged as they come.
    pub(crate) async fn recheck(&self, judge: impl Fn(&Facts) -> Verdict, grace: Duration) -> Rechecked {
        let all: Vec<u64> = self.lock().inbound.keys().copied().collect();
        // Streams of one tunnel differ in nothing that a policy looks at.
        let mut known: HashMap<Facts, Verdict> = HashMap::new();
        let mut done = Rechecked::default();
        let mut began = std::time::Instant::now();
        for id in all {
            let Some(facts) = self.lock().inbound.get(&id).map(|judged| judged.facts.clone()) else {
                continue;
            };
            let verdict = known.entry(facts).or_insert_with_key(&judge).clone();
            self.lock().settle(id, verdict, grace, &mut done);
            if began.elapsed() > SLICE {
                yield_now().await;
                began = std::time::Instant::now();
            }
        }
        done
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing panics while the table is half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn settle(&mut self, id: u64, verdict: Verdict, grace: Duration, done: &mut Rechecked) {
        let Some(judged) = self.inbound.get_mut(&id) else { return };
        let refusal = match verdict {
            Verdict::Allowed => {
                judged.undecided = None;
                return;
            }
            Verdict::Undecided(refusal) => {
                let now = Instant::now();
                let until = *judged.undecided.get_or_insert(now) + grace;
                if now < until {
                    done.next = Some(done.next.map_or(until, |next| next.min(until)));
                    return;
                }
                refusal
            }
            Verdict::Refused(refusal) => refusal,
        };
        if let Some(judged) = self.inbound.remove(&id) {
            // Its owner may be ending by itself.
            done.refused += usize::from(judged.close.send(refusal).is_ok());
        }
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
mod tests;
