//! The TCP connections of one pod. There is room for so many of them; when it is used up, the one that has been idle for
//! longest is closed for the next. A connection with a query in flight is never closed so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

/// The open connections.
#[derive(Debug)]
pub(super) struct Connections {
    limit: usize,
    open: Mutex<Table>,
    /// A connection ended or became idle.
    room: Notify,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    entries: HashMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// Since when it is idle, as a number that only grows; `None` while a query is in flight.
    idle_since: Option<u64>,
    /// Dropped with the entry, which closes the connection.
    _stays: oneshot::Sender<()>,
}

/// An open connection, until dropped. It begins busy.
#[derive(Debug)]
pub(super) struct OpenConnection {
    all: Arc<Connections>,
    id: u64,
    closed: oneshot::Receiver<()>,
}

impl Connections {
    /// Room for `limit` connections, at least one.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: limit.max(1), open: Mutex::default(), room: Notify::new() })
    }

    /// Admits a connection, as soon as there is room or one is idle.
    pub(super) async fn admit(self: &Arc<Self>) -> OpenConnection {
        loop {
            let room = self.room.notified();
            if let Some(admitted) = self.try_admit() {
                return admitted;
            }
            room.await;
        }
    }

    fn try_admit(self: &Arc<Self>) -> Option<OpenConnection> {
        let mut open = self.lock();
        if open.entries.len() >= self.limit {
            let idle = open.entries.iter().filter_map(|(id, entry)| Some((entry.idle_since?, *id)));
            let (_, longest) = idle.min()?;
            open.entries.remove(&longest);
        }
        let (stays, closed) = oneshot::channel();
        let id = open.tick();
        open.entries.insert(id, Entry { idle_since: None, _stays: stays });
        Some(OpenConnection { all: Arc::clone(self), id, closed })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // No update can panic half-way.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl OpenConnection {
    /// It waits for a query from now on.
    pub(super) fn idle(&self) {
        let mut open = self.all.lock();
        let now = open.tick();
        if let Some(entry) = open.entries.get_mut(&self.id) {
            entry.idle_since = Some(now);
        }
        drop(open);
        self.all.room.notify_one();
    }

    /// A query is in flight from now on.
    pub(super) fn busy(&self) {
        if let Some(entry) = self.all.lock().entries.get_mut(&self.id) {
            entry.idle_since = None;
        }
    }

    /// Returns when the connection has to be closed for another one.
    pub(super) async fn closed(&mut self) {
        // The sender never sends: it is dropped.
        let _ = (&mut self.closed).await;
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.all.lock().entries.remove(&self.id);
        self.all.room.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use super::*;

    fn has_to_go(connection: &mut OpenConnection) -> bool {
        connection.closed.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_connection_is_closed_and_never_a_busy_one() {
        let all = Connections::new(3);
        let (mut a, mut b, mut c) = (all.admit().await, all.admit().await, all.admit().await);
        let mut next = pin!(all.admit());
        let waits = tokio::time::timeout(Duration::from_secs(60), &mut next).await;
        assert!(waits.is_err(), "all are busy");
        b.idle();
        let mut d = next.await;
        assert!(has_to_go(&mut b) && !has_to_go(&mut a) && !has_to_go(&mut c));
        c.idle();
        a.idle();
        c.busy();
        c.idle();
        let _e = all.admit().await;
        assert!(has_to_go(&mut a) && !has_to_go(&mut c) && !has_to_go(&mut d), "c was idle later");
        drop((a, b, c));
        assert_eq!(all.lock().entries.len(), 2, "what was closed is not removed twice");
        let _f = all.admit().await;
        assert!(!has_to_go(&mut d));
    }
}
