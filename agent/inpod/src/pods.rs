//! What the admin endpoint may see of the table.

use std::sync::{Arc, Mutex, PoisonError};

use isthmus_model::PodUid;

use crate::runtime::PodInfo;
use crate::table::{Place, Table};

/// Whether a pod is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodState {
    /// Its start failed and is tried again.
    Pending,
    /// It is served.
    Up,
}

/// A pod as the table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEntry {
    /// Its UID.
    pub uid: PodUid,
    /// Whether it is served.
    pub state: PodState,
    /// Who it is.
    pub info: PodInfo,
}

/// A view of the table, kept up to date by [`crate::run`]. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Pods(Arc<Mutex<Arc<[PodEntry]>>>);

impl Pods {
    /// The pods now, by state and uid.
    #[must_use]
    pub fn snapshot(&self) -> Arc<[PodEntry]> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn show<N: Place>(&self, table: &Table<N>) {
        let row = |state| {
            move |(uid, entry): (&PodUid, &crate::table::Entry<N>)| PodEntry {
                uid: uid.clone(),
                state,
                info: entry.info.clone(),
            }
        };
        let pending = table.pending().map(row(PodState::Pending));
        let rows = pending.chain(table.running().map(row(PodState::Up))).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = rows;
    }
}
