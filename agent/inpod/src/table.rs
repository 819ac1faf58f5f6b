//! The pods the agent serves and those it should: events in, orders out. No socket, clock or task.
//!
//! ```text
//! connected ─► add/keep … ─► snapshot_sent ─► add/del …        while connected
//!                 │               │
//!                 │               └ what runs and was not named is stopped
//!                 ├ new pod, or a known uid in another netns: start (after stopping the old one)
//!                 └ known uid in the same netns: nothing
//! start failed ─► pending: started again every 5 s until it works, the pod is deleted or the connection ends
//! disconnected ─► what runs goes on; what is pending is forgotten, the next snapshot names it again
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use isthmus_model::PodUid;
use isthmus_sys::netns::{Netns, NetnsId};
use tokio::time::Instant;

use crate::runtime::PodInfo;

/// How long after a failed start the next is tried.
pub const RETRY: Duration = Duration::from_secs(5);

/// Something that can tell whether it is the same network namespace as another.
pub trait Place: Clone {
    /// What tells two apart for as long as both are held.
    type Id: PartialEq + Debug;
    /// This one's.
    fn id(&self) -> Self::Id;
}

impl Place for Netns {
    type Id = NetnsId;
    fn id(&self) -> NetnsId {
        Self::id(self)
    }
}

/// A pod and where it lives. The place is held for as long as the pod is in the table: its number could otherwise be
/// given to another namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<N> {
    /// Who it is.
    pub info: PodInfo,
    /// Where it lives.
    pub place: N,
}

/// What to do with an added pod before it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Nothing: it runs.
    Nothing,
    /// Start it, and report with [`Table::started`].
    Start,
    /// Stop what runs under its uid at once, then start it.
    Restart,
}

/// A request that must not come now. The node role and the agent disagree: the connection is made anew.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutOfOrder {
    /// Keep is for the snapshot.
    #[error("keep of pod {0} came after the snapshot")]
    KeepAfterSnapshot(PodUid),
    /// There is one snapshot per connection.
    #[error("a second end of snapshot came")]
    SecondSnapshot,
}

/// The table.
#[derive(Debug)]
pub struct Table<N> {
    running: BTreeMap<PodUid, Entry<N>>,
    pending: BTreeMap<PodUid, (Entry<N>, Instant)>,
    /// The uids of the snapshot so far; `None` after its end.
    snapshot: Option<BTreeSet<PodUid>>,
    connected: bool,
}

impl<N> Default for Table<N> {
    fn default() -> Self {
        let (running, pending) = (BTreeMap::new(), BTreeMap::new());
        Self { running, pending, snapshot: Some(BTreeSet::new()), connected: false }
    }
}

impl<N: Place> Table<N> {
    /// A new connection begins with a new snapshot.
    pub fn connected(&mut self) {
        self.connected = true;
        self.snapshot = Some(BTreeSet::new());
        self.pending.clear();
    }

    /// The connection ended. What runs goes on.
    pub fn disconnected(&mut self) {
        self.connected = false;
        self.pending.clear();
    }

    /// A pod is to be served.
    pub fn add(&mut self, uid: &PodUid, place: &N) -> Order {
        if let Some(named) = &mut self.snapshot {
            named.insert(uid.clone());
        }
        match self.running.get(uid) {
            Some(known) if known.place.id() == place.id() => Order::Nothing,
            Some(_) => {
                self.running.remove(uid);
                Order::Restart
            }
            None => Order::Start,
        }
    }

    /// How a start went; a failed one is tried again [`RETRY`] after `now`.
    pub fn started(&mut self, uid: PodUid, entry: Entry<N>, worked: bool, now: Instant) {
        self.pending.remove(&uid);
        if worked {
            self.running.insert(uid, entry);
        } else {
            self.pending.insert(uid, (entry, now + RETRY));
        }
    }

    /// A pod is still there, though its namespace could not be passed.
    ///
    /// # Errors
    /// After the snapshot.
    pub fn keep(&mut self, uid: PodUid) -> Result<(), OutOfOrder> {
        match &mut self.snapshot {
            Some(named) => {
                named.insert(uid);
                Ok(())
            }
            None => Err(OutOfOrder::KeepAfterSnapshot(uid)),
        }
    }

    /// A pod is gone. True when it runs and is to be stopped now; before the end of the snapshot that decides.
    pub fn del(&mut self, uid: &PodUid) -> bool {
        self.pending.remove(uid);
        match &mut self.snapshot {
            Some(named) => {
                named.remove(uid);
                false
            }
            None => self.running.remove(uid).is_some(),
        }
    }

    /// The snapshot is complete: the pods that run and were not named, to be stopped.
    ///
    /// # Errors
    /// When it was complete before.
    pub fn snapshot_sent(&mut self) -> Result<Vec<PodUid>, OutOfOrder> {
        let named = self.snapshot.take().ok_or(OutOfOrder::SecondSnapshot)?;
        let gone: Vec<_> = self.running.keys().filter(|uid| !named.contains(*uid)).cloned().collect();
        self.running.retain(|uid, _| named.contains(uid));
        self.pending.retain(|uid, _| named.contains(uid));
        Ok(gone)
    }

    /// When the next failed start is to be tried again.
    #[must_use]
    pub fn next_retry(&self) -> Option<Instant> {
        self.pending.values().map(|(_, at)| *at).min()
    }

    /// A failed start whose time has come.
    #[must_use]
    pub fn due(&self, now: Instant) -> Option<(PodUid, Entry<N>)> {
        let due = self.pending.iter().find(|(_, (_, at))| *at <= now);
        due.map(|(uid, (entry, _))| (uid.clone(), entry.clone()))
    }

    /// Whether every pod that should be served is.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.connected && self.snapshot.is_none() && self.pending.is_empty()
    }

    /// The pods that are served.
    pub fn running(&self) -> impl ExactSizeIterator<Item = (&PodUid, &Entry<N>)> {
        self.running.iter()
    }

    /// The pods whose start failed.
    pub fn pending(&self) -> impl ExactSizeIterator<Item = (&PodUid, &Entry<N>)> {
        self.pending.iter().map(|(uid, (entry, _))| (uid, entry))
    }
}

#[cfg(test)]
mod tests;
