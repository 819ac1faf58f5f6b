//! What a pod has learnt of those it connects to, shared by its connections.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::state::PodRetryState;
use crate::config::Retry;

/// Shared by the connections of one pod.
#[derive(Debug)]
pub(crate) struct SharedRetryState(Mutex<PodRetryState>);

impl SharedRetryState {
    pub(crate) fn new(retry: &Retry) -> Self {
        Self(Mutex::new(PodRetryState::new(retry, Instant::now())))
    }

    /// Held for the length of a decision, never across a wait.
    pub(crate) fn lock(&self) -> MutexGuard<'_, PodRetryState> {
        // Nothing in there is left half done by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
