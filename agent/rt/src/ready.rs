//! Readiness by guards: the process is ready when no guard exists. Owns the names of pending guards.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// The pending guards of the process. Clones share them.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<watch::Sender<BTreeMap<String, usize>>>);

/// Blocks readiness under a name until dropped.
#[derive(Debug)]
#[must_use = "readiness is blocked only while the guard lives"]
pub struct BlockReady {
    name: String,
    of: Readiness,
}

impl Default for Readiness {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(BTreeMap::new())))
    }
}

impl Readiness {
    /// Blocks readiness until the guard is dropped. The readiness endpoint shows the name.
    pub fn block(&self, name: impl Into<String>) -> BlockReady {
        let name = name.into();
        self.0.send_modify(|pending| *pending.entry(name.clone()).or_default() += 1);
        BlockReady { name, of: self.clone() }
    }

    /// Names of pending guards, sorted; empty when ready.
    #[must_use]
    pub fn pending(&self) -> Vec<String> {
        self.0.borrow().keys().cloned().collect()
    }

    /// Resolves when no guard of this name exists.
    pub async fn released(&self, name: &str) {
        // Cannot fail: `self` holds the sender.
        let _ = self.0.subscribe().wait_for(|pending| !pending.contains_key(name)).await;
    }
}

impl Drop for BlockReady {
    fn drop(&mut self) {
        self.of.0.send_modify(|pending| match pending.get_mut(&self.name) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                pending.remove(&self.name);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_pending_until_its_last_guard_is_dropped() {
        let ready = Readiness::default();
        let (a, b) = (ready.block("x"), ready.block("x"));
        drop(a);
        assert_eq!(ready.pending(), ["x"]);
        let release = async { drop(b) };
        tokio::join!(ready.released("x"), release);
        assert!(ready.pending().is_empty());
    }
}
