//! The pod table as the admin endpoint reads it: a copy that is published after every change, so that a reader never
//! waits for the ZDS client.

use std::sync::{Arc, Mutex, PoisonError};

use isthmus_model::PodRef;

use crate::table::{NetnsHandle, PodTable};

/// Whether a pod is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodState {
    /// Its start failed and is retried.
    Pending,
    /// Its listeners are open.
    Up,
}

/// One pod of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEntry {
    /// Which pod.
    pub pod: PodRef,
    /// Whether it is served.
    pub state: PodState,
    /// Why not.
    pub reason: Option<Arc<str>>,
}

/// The pods of this node, kept up to date by [`crate::run`]. Clones share the list.
#[derive(Debug, Clone, Default)]
pub struct PodList(Arc<Mutex<Arc<[PodEntry]>>>);

impl PodList {
    /// The pods now: pending ones first, each group ordered by UID.
    #[must_use]
    pub fn snapshot(&self) -> Arc<[PodEntry]> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn publish<N: NetnsHandle>(&self, table: &PodTable<N>) {
        let entry = |pod: &PodRef, state, reason| PodEntry { pod: pod.clone(), state, reason };
        let pending = table
            .pending()
            .map(|(pending, reason)| entry(&pending.pod, PodState::Pending, Some(Arc::clone(reason))));
        let running = table.running().map(|(_, running)| entry(&running.pod, PodState::Up, None));
        let entries = pending.chain(running).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = entries;
    }
}
