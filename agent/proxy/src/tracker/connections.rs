//! The connection table. It holds no sockets: to close a connection it signals the task that serves it, through
//! [`Tracked::denied`].

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isthmus_model::Facts;
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::Instant;

use crate::types::{Carrier, Refusal};

/// A recheck yields after this long, since it runs on a thread that also serves connections.
const TIME_SLICE: Duration = Duration::from_micros(500);

/// One open connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The client.
    pub src: SocketAddr,
    /// The destination that the client requested: outbound an address, inbound the service's hostname if the peer sent
    /// one.
    pub original_dst: Option<String>,
    /// The address to which the proxy connects.
    pub actual_dst: SocketAddr,
    /// The transport.
    pub protocol: Carrier,
}

/// A copy of the open connections of one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectionsSnapshot {
    /// To the pod.
    pub inbound: Vec<Connection>,
    /// From the pod.
    pub outbound: Vec<Connection>,
}

/// The connection table; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Connections(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
pub(super) struct Table {
    next_id: u64,
    pub(super) inbound: HashMap<u64, InboundEntry>,
    pub(super) outbound: HashMap<u64, Connection>,
}

#[derive(Debug)]
pub(super) struct InboundEntry {
    pub(super) conn: Connection,
    facts: Facts,
    deny: oneshot::Sender<Refusal>,
    /// Since when rechecks have been pending.
    pending_since: Option<Instant>,
}

/// Outcome of the recheck of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RecheckOutcome {
    /// The connection stays open.
    Allowed,
    /// A policy that applies is missing: the connection stays open for the grace period, then it is closed for this
    /// reason.
    Pending(Refusal),
    /// The connection is closed for this reason.
    Denied(Refusal),
}

/// Result of a recheck of all inbound connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct RecheckSummary {
    /// Number of closed connections.
    pub(crate) closed: usize,
    /// When the earliest grace period of a pending connection ends.
    pub(crate) next: Option<Instant>,
}

/// A connection's entry in the table; removed when dropped.
#[derive(Debug)]
pub(crate) struct Tracked {
    id: u64,
    table: Connections,
    denied: Option<oneshot::Receiver<Refusal>>,
}

// === impl Connections ===

impl Connections {
    /// Adds an inbound connection, with the facts that policies are evaluated for.
    pub(crate) fn inbound(&self, conn: Connection, facts: Facts) -> Tracked {
        let (deny, denied) = oneshot::channel();
        let mut table = self.lock();
        let id = table.id();
        table.inbound.insert(id, InboundEntry { conn, facts, deny, pending_since: None });
        Tracked { id, table: self.clone(), denied: Some(denied) }
    }

    /// Adds an outbound connection.
    pub(crate) fn outbound(&self, conn: Connection) -> Tracked {
        let mut table = self.lock();
        let id = table.id();
        table.outbound.insert(id, conn);
        Tracked { id, table: self.clone(), denied: None }
    }

    /// A copy of the table.
    pub(crate) fn snapshot(&self) -> ConnectionsSnapshot {
        let table = self.lock();
        ConnectionsSnapshot {
            inbound: table.inbound.values().map(|entry| entry.conn.clone()).collect(),
            outbound: table.outbound.values().cloned().collect(),
        }
    }

    /// Evaluates every inbound connection again, and closes those that are denied or have been pending for longer
    /// than `grace`. The table is not locked while `evaluate` runs, and the task yields to others regularly.
    /// Connections added meanwhile are skipped: their own authorization sees the new policies.
    pub(crate) async fn recheck(
        &self,
        evaluate: impl Fn(&Facts) -> RecheckOutcome,
        grace: Duration,
    ) -> RecheckSummary {
        let ids: Vec<u64> = self.lock().inbound.keys().copied().collect();
        // Streams of one tunnel mostly have equal facts.
        let mut outcomes: HashMap<Facts, RecheckOutcome> = HashMap::new();
        let mut summary = RecheckSummary::default();
        let mut slice_start = std::time::Instant::now();
        for id in ids {
            let Some(facts) = self.lock().inbound.get(&id).map(|entry| entry.facts.clone()) else {
                continue;
            };
            let outcome = outcomes.entry(facts).or_insert_with_key(&evaluate).clone();
            self.lock().apply(id, outcome, grace, &mut summary);
            if slice_start.elapsed() > TIME_SLICE {
                yield_now().await;
                slice_start = std::time::Instant::now();
            }
        }
        summary
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Table> {
        // A poisoned lock is still consistent: no code panics between two related changes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn apply(&mut self, id: u64, outcome: RecheckOutcome, grace: Duration, summary: &mut RecheckSummary) {
        let Some(entry) = self.inbound.get_mut(&id) else { return };
        let refusal = match outcome {
            RecheckOutcome::Allowed => {
                entry.pending_since = None;
                return;
            }
            RecheckOutcome::Pending(refusal) => {
                let now = Instant::now();
                let until = *entry.pending_since.get_or_insert(now) + grace;
                if now < until {
                    summary.next = Some(summary.next.map_or(until, |next| next.min(until)));
                    return;
                }
                refusal
            }
            RecheckOutcome::Denied(refusal) => refusal,
        };
        if let Some(entry) = self.inbound.remove(&id) {
            // Fails if the connection is closing by itself.
            summary.closed += usize::from(entry.deny.send(refusal).is_ok());
        }
    }
}

// === impl Tracked ===

impl Tracked {
    /// The entry; `None` once the connection is to be closed.
    pub(crate) fn connection(&self) -> Option<Connection> {
        let table = self.table.lock();
        let inbound = table.inbound.get(&self.id).map(|entry| &entry.conn);
        inbound.or_else(|| table.outbound.get(&self.id)).cloned()
    }

    /// Resolves when a recheck denies the connection, which must then be closed; never for outbound connections.
    pub(crate) async fn denied(&mut self) -> Refusal {
        if let Some(denied) = self.denied.as_mut() {
            // The entry lives as long as this, so its sender is only dropped by sending.
            let refusal = denied.await;
            self.denied = None;
            if let Ok(refusal) = refusal {
                return refusal;
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
