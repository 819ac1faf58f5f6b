//! The retry state of a pod behind its lock. The lock is held for single updates and copies, never while a route is
//! resolved.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isthmus_state::EjectedEndpoints;
use tokio::time::Instant;

use super::state::PodRetryState;
use crate::config::Retry;

/// The retry state that the connections of one pod share.
#[derive(Debug)]
pub(crate) struct SharedRetryState(Mutex<PodRetryState>);

impl SharedRetryState {
    pub(crate) fn new(retry: &Retry) -> Self {
        Self(Mutex::new(PodRetryState::new(retry, Instant::now())))
    }

    /// Locks it for one update.
    pub(crate) fn lock(&self) -> MutexGuard<'_, PodRetryState> {
        // No update can panic half-way, so a poisoned lock is as good as any.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ejections of the pod as they are now, to resolve a route with; `None` when there are none.
    pub(crate) fn ejected(&self) -> Option<Arc<EjectedEndpoints>> {
        self.lock().ejections.snapshot()
    }
}
