//! What a pod has learnt of those it connects to, shared by its connections.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::retry::Experience;
use crate::config::Retry;

/// Shared by the connections of one pod.
#[derive(Debug)]
pub(crate) struct Memory(Mutex<Experience>);

impl Memory {
    pub(crate) fn new(retry: &Retry) -> Self {
        Self(Mutex::new(Experience::new(retry, Instant::now())))
    }

    /// Held for the length of a decision, never across a wait.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Experience> {
        // Nothing in there is left half done by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
