//! What one peer may do on all its tunnels to one pod together: their number, and streams that it resets before they carry a
//! byte. Knows neither tunnels nor what a peer is.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

/// Tunnels of one peer. A client has one for each hundred of its connections; behind a gateway, where many clients of one
/// identity look like one peer, it has as many as there are.
const MAX_TUNNELS: usize = 8192;
/// Above this many, those without streams are closed early.
const CROWDED: usize = 64;
/// Streams per second that a peer may reset before they carry a byte, and for how long it may save them up.
const RESETS_PER_SECOND: u32 = 2_000;
const RESETS: u32 = 10 * RESETS_PER_SECOND;

/// The peers of one pod.
#[derive(Debug)]
pub struct PeerBudgets<K>(Mutex<HashMap<K, Weak<PeerBudget>>>);

/// What one peer has.
#[derive(Debug)]
pub struct PeerBudget {
    tunnels: AtomicUsize,
    resets: Mutex<(u32, Instant)>,
}

/// A tunnel of a peer, until dropped.
#[derive(Debug, Clone)]
pub struct PeerTunnel(Arc<Counted>);

#[derive(Debug)]
struct Counted(Arc<PeerBudget>);

/// A peer has as many tunnels as it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer has {MAX_TUNNELS} tunnels to this pod, more are refused")]
pub struct TooManyTunnels;

impl<K> Default for PeerBudgets<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq> PeerBudgets<K> {
    /// Counts one more tunnel of a peer.
    ///
    /// # Errors
    /// When it has too many.
    pub fn admit(&self, peer: K) -> Result<PeerTunnel, TooManyTunnels> {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = peers.get(&peer).and_then(Weak::upgrade);
        let budget = known.unwrap_or_else(|| {
            // Here, where the map grows.
            peers.retain(|_, budget| budget.strong_count() > 0);
            let budget = Arc::new(PeerBudget {
                tunnels: AtomicUsize::new(0),
                resets: Mutex::new((RESETS, Instant::now())),
            });
            peers.insert(peer, Arc::downgrade(&budget));
            budget
        });
        let more = |tunnels: usize| (tunnels < MAX_TUNNELS).then_some(tunnels + 1);
        budget.tunnels.fetch_update(Relaxed, Relaxed, more).map_err(|_| TooManyTunnels)?;
        Ok(PeerTunnel(Arc::new(Counted(budget))))
    }
}

impl PeerTunnel {
    /// Whether the peer has so many tunnels that those without streams are closed early.
    pub(crate) fn is_crowded(&self) -> bool {
        self.0.0.tunnels.load(Relaxed) > CROWDED
    }

    /// The peer has reset streams before they carried a byte: whether it may.
    #[must_use]
    pub fn try_spend_resets(&self, resets: u32) -> bool {
        let mut budget = self.0.0.resets.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, since) = &mut *budget;
        let now = Instant::now();
        let earned =
            (now - *since).min(Duration::from_secs(10)).as_millis() * u128::from(RESETS_PER_SECOND) / 1000;
        *left = left.saturating_add(u32::try_from(earned).unwrap_or(RESETS)).min(RESETS);
        *since = now;
        let may = *left >= resets;
        *left = left.saturating_sub(resets);
        may
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.tunnels.fetch_sub(1, Relaxed);
    }
}

impl PartialEq for PeerTunnel {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for PeerTunnel {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_has_so_many_tunnels_and_another_its_own() {
        let peers = PeerBudgets::default();
        let mut tunnels: Vec<_> = (0..CROWDED).map(|_| peers.admit("a").unwrap()).collect();
        assert!(!tunnels[0].is_crowded());
        tunnels.extend((CROWDED..MAX_TUNNELS).map(|_| peers.admit("a").unwrap()));
        assert!(tunnels[0].is_crowded());
        assert_eq!(peers.admit("a"), Err(TooManyTunnels));
        assert!(!peers.admit("b").unwrap().is_crowded());
        tunnels.pop();
        assert!(peers.admit("a").is_ok());
        tunnels.clear();
        let _ = peers.admit("c");
        assert_eq!(peers.0.lock().unwrap().len(), 1, "peers without a tunnel are forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn resets_of_all_tunnels_of_a_peer_are_one_budget_that_comes_back() {
        let peers = PeerBudgets::default();
        let (one, other) = (peers.admit("a").unwrap(), peers.admit("a").unwrap());
        assert!(one.try_spend_resets(RESETS / 2) && other.try_spend_resets(RESETS / 2));
        assert!(!one.try_spend_resets(1));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(other.try_spend_resets(RESETS_PER_SECOND) && !one.try_spend_resets(1));
    }
}
