//! Readiness as guard values: the process is ready when no guard is left. Owns the names of what is pending.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What the process still waits for.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<String, usize>>>);

/// Blocks readiness under a name until dropped.
#[derive(Debug)]
#[must_use = "readiness is blocked only while the guard lives"]
pub struct BlockReady {
    name: String,
    of: Readiness,
}

impl Readiness {
    /// Blocks readiness until the guard is dropped; the name is shown by the readiness endpoint.
    pub fn block(&self, name: impl Into<String>) -> BlockReady {
        let name = name.into();
        *self.lock().entry(name.clone()).or_default() += 1;
        BlockReady { name, of: self.clone() }
    }

    /// Names still pending, sorted; empty when ready.
    #[must_use]
    pub fn pending(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        // A panic cannot leave the counts half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for BlockReady {
    fn drop(&mut self) {
        let mut pending = self.of.lock();
        match pending.get_mut(&self.name) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                pending.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_pending_until_its_last_guard_is_dropped() {
        let ready = Readiness::default();
        let (a, b) = (ready.block("x"), ready.block("x"));
        drop(a);
        assert_eq!(ready.pending(), ["x"]);
        drop(b);
        assert!(ready.pending().is_empty());
    }
}
