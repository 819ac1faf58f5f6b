//! The pods that the agent serves and those it should serve, as a state machine: ZDS requests in, actions out. No
//! socket, clock or task.
//!
//! ```text
//! connected ─► add/keep … ─► snapshot_sent ─► add/del …        while connected
//!                 │               │
//!                 │               └ a running pod that the snapshot did not name is stopped
//!                 ├ new pod, or a known uid in another netns: start (after stopping the old one)
//!                 └ known uid in the same netns: nothing
//! start failed ─► pending: retried after 1 s, 2 s, 4 s … 60 s (5 s while it is the agent that cannot) until it works,
//!                 the pod is deleted or the connection ends
//! disconnected ─► running pods go on; pending ones are forgotten, the next snapshot names them again
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::{PodRef, PodUid};
use isthmus_sys::netns::{Netns, NetnsId};
use tokio::time::Instant;

use crate::runtime::Blame;

/// Delay between the first failed start and its retry; each further one is twice as long.
pub const RETRY: Duration = Duration::from_secs(1);
/// The longest delay while something in the pod is in the way, and while it is the agent that cannot start pods.
pub const LONGEST_RETRY: Duration = Duration::from_secs(60);
const LONGEST_OF_PROCESS: Duration = Duration::from_secs(5);

/// A handle that keeps a network namespace alive and tells it from another one. A trait so that the state machine is
/// tested without namespaces.
pub trait NetnsHandle: Clone {
    /// Identifies the namespace for as long as the handle is held.
    type Id: PartialEq + Debug;
    /// The namespace's identity.
    fn id(&self) -> Self::Id;
}

impl NetnsHandle for Netns {
    type Id = NetnsId;
    fn id(&self) -> NetnsId {
        Self::id(self)
    }
}

/// A pod and its network namespace. The namespace is held open for as long as the pod is in the table: the kernel
/// reuses the inode number of a namespace that is gone, and a restarted pod could then look like the same one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<N> {
    /// Which pod.
    pub pod: PodRef,
    /// Its network namespace.
    pub netns: N,
}

/// A pod whose start failed.
#[derive(Debug)]
struct Pending<N> {
    entry: Entry<N>,
    whose: Blame,
    reason: Arc<str>,
    retry_at: Instant,
    /// The delay before that.
    delay: Duration,
}

/// What an add requires before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddAction {
    /// Nothing: the pod is served already.
    None,
    /// Start the pod, and report with [`PodTable::started`].
    Start,
    /// Stop the pod of this uid at once (its sandbox was replaced), then start it.
    Restart,
}

/// A request that the protocol does not allow at this point. Node role and agent disagree about the connection's
/// state, so it is closed and a new one starts with a new snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// `Keep` is allowed in the snapshot only.
    #[error("keep of pod {0} came after the snapshot")]
    KeepAfterSnapshot(PodUid),
    /// There is one snapshot per connection.
    #[error("a second end of snapshot came")]
    SecondSnapshot,
}

/// The pods of this node.
#[derive(Debug)]
pub struct PodTable<N> {
    running: BTreeMap<PodUid, Entry<N>>,
    pending: BTreeMap<PodUid, Pending<N>>,
    /// The uids that the snapshot has named so far; `None` once it is complete.
    snapshot: Option<BTreeSet<PodUid>>,
    connected: bool,
}

impl<N> Default for PodTable<N> {
    fn default() -> Self {
        let (running, pending) = (BTreeMap::new(), BTreeMap::new());
        Self { running, pending, snapshot: Some(BTreeSet::new()), connected: false }
    }
}

impl<N: NetnsHandle> PodTable<N> {
    /// A connection is established; it begins with a snapshot.
    pub fn connected(&mut self) {
        self.connected = true;
        self.snapshot = Some(BTreeSet::new());
        self.pending.clear();
    }

    /// The connection is lost. Running pods go on.
    pub fn disconnected(&mut self) {
        self.connected = false;
        self.pending.clear();
    }

    /// A pod is to be served.
    pub fn add(&mut self, uid: &PodUid, netns: &N) -> AddAction {
        if let Some(named) = &mut self.snapshot {
            named.insert(uid.clone());
        }
        match self.running.get(uid) {
            Some(known) if known.netns.id() == netns.id() => AddAction::None,
            Some(_) => {
                self.running.remove(uid);
                AddAction::Restart
            }
            None => AddAction::Start,
        }
    }

    /// The result of a start. Returns the delay after which a failed one is retried.
    pub fn started(
        &mut self,
        entry: Entry<N>,
        result: Result<(), (Blame, Arc<str>)>,
        now: Instant,
    ) -> Option<Duration> {
        let uid = entry.pod.uid.clone();
        let before = self.pending.remove(&uid).filter(|pending| pending.entry.netns.id() == entry.netns.id());
        let Err((whose, reason)) = result else {
            self.running.insert(uid, entry);
            return None;
        };
        let longest = match whose {
            Blame::Pod => LONGEST_RETRY,
            Blame::Process => LONGEST_OF_PROCESS,
        };
        let delay = before.map_or(RETRY, |before| 2 * before.delay).min(longest);
        self.pending.insert(uid, Pending { entry, whose, reason, retry_at: now + delay, delay });
        Some(delay)
    }

    /// The pod still exists, but the node role has no handle of its namespace to pass.
    ///
    /// # Errors
    /// After the snapshot.
    pub fn keep(&mut self, uid: PodUid) -> Result<(), ProtocolError> {
        match &mut self.snapshot {
            Some(named) => {
                named.insert(uid);
                Ok(())
            }
            None => Err(ProtocolError::KeepAfterSnapshot(uid)),
        }
    }

    /// The pod has left. Returns it when it is running and must be stopped now; until the snapshot is complete it is
    /// only struck from the snapshot, whose end decides.
    pub fn del(&mut self, uid: &PodUid) -> Option<PodRef> {
        self.pending.remove(uid);
        match &mut self.snapshot {
            Some(named) => {
                named.remove(uid);
                None
            }
            None => self.running.remove(uid).map(|entry| entry.pod),
        }
    }

    /// The snapshot is complete. Returns the running pods that it did not name, which must be stopped.
    ///
    /// # Errors
    /// When it was complete before.
    pub fn snapshot_sent(&mut self) -> Result<Vec<PodRef>, ProtocolError> {
        let named = self.snapshot.take().ok_or(ProtocolError::SecondSnapshot)?;
        let unnamed = self.running.values().filter(|entry| !named.contains(&entry.pod.uid));
        let gone = unnamed.map(|entry| entry.pod.clone()).collect();
        self.running.retain(|uid, _| named.contains(uid));
        self.pending.retain(|uid, _| named.contains(uid));
        Ok(gone)
    }

    /// When the next failed start is due for a retry.
    #[must_use]
    pub fn next_retry(&self) -> Option<Instant> {
        self.pending.values().map(|pending| pending.retry_at).min()
    }

    /// A failed start that is due for a retry.
    #[must_use]
    pub fn due(&self, now: Instant) -> Option<Entry<N>> {
        self.pending.values().find(|pending| pending.retry_at <= now).map(|pending| pending.entry.clone())
    }

    /// Whether every pod that should be served is, except those in which something is in the way.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let is_able = self.pending.values().all(|pending| pending.whose == Blame::Pod);
        self.connected && self.snapshot.is_none() && is_able
    }

    /// The pods that are served.
    pub fn running(&self) -> impl ExactSizeIterator<Item = (&PodUid, &Entry<N>)> {
        self.running.iter()
    }

    /// The pods whose start failed, each with the reason.
    pub fn pending(&self) -> impl ExactSizeIterator<Item = (&Entry<N>, &Arc<str>)> {
        self.pending.values().map(|pending| (&pending.entry, &pending.reason))
    }
}

#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;
