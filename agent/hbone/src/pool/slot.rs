//! One key's place in the pool: the lock around its [`Entry`], and who is told what. Nobody is told under the lock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::entry::{Entry, Member, Spread};
use super::{ConnectFailure, Stage};
use crate::TunnelError;
use crate::client::{Permit, Tunnel};

/// How a waiting caller is told.
pub(super) type Waiter = oneshot::Sender<Grant>;

#[derive(Debug)]
pub(super) struct Slot(Mutex<Entry<Tunnel, Waiter>>);

/// What a waiting caller is told.
#[derive(Debug)]
pub(super) enum Grant {
    Use(Tunnel, Permit),
    Dial(Dial),
    Failed(ConnectFailure),
}

/// The duty to dial. Dropped without an outcome it goes to the next caller that waits.
#[derive(Debug)]
pub(super) struct Dial(pub(super) Option<Arc<Slot>>);

/// A tunnel with room for one more stream.
pub(super) struct Lease {
    pub(super) tunnel: Tunnel,
    pub(super) permit: Permit,
    pub(super) reused: bool,
}

// === impl Slot ===

impl Slot {
    pub(super) fn new(spread: Spread) -> Self {
        Self(Mutex::new(Entry::new(spread)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Entry<Tunnel, Waiter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the room there is to those who wait. Nobody is told under the lock: what a caller that has gone does not
    /// take comes back by being dropped, and takes the lock again.
    fn grant_all(&self) {
        loop {
            let Some((waiter, tunnel, permit)) = self.lock().grant() else { return };
            let _ = waiter.send(Grant::Use(tunnel, permit));
        }
    }
}

// === impl Dial ===

impl Dial {
    /// Passes on how the dial went.
    pub(super) fn done(mut self, made: Result<Tunnel, ConnectFailure>) -> Result<Lease, ConnectFailure> {
        let slot = self.0.take();
        match (made, slot) {
            (Ok(tunnel), slot) => {
                let permit = tunnel.reserve();
                if let Some(slot) = slot {
                    slot.lock().dialed(tunnel.clone());
                    slot.grant_all();
                    let next = slot.lock().next_dialler();
                    hand_on(&slot, next);
                }
                let lost = || tunnel.ended().cloned().unwrap_or(TunnelError::Closed);
                let permit = permit.ok_or_else(|| ConnectFailure::new(Stage::Handshake, lost()))?;
                Ok(Lease { tunnel, permit, reused: false })
            }
            (Err(failure), slot) => {
                let lost = slot.map(|slot| slot.lock().failed()).unwrap_or_default();
                for waiter in lost {
                    let _ = waiter.send(Grant::Failed(failure.clone()));
                }
                Err(failure)
            }
        }
    }
}

/// Makes a waiting caller the dialler; when it has gone, the next one.
fn hand_on(slot: &Arc<Slot>, mut waiter: Option<Waiter>) {
    while let Some(next) = waiter {
        let Err(Grant::Dial(mut untaken)) = next.send(Grant::Dial(Dial(Some(Arc::clone(slot))))) else {
            return;
        };
        untaken.0 = None;
        waiter = slot.lock().abandoned();
    }
}

impl Drop for Dial {
    fn drop(&mut self) {
        let Some(slot) = self.0.take() else { return };
        let next = slot.lock().abandoned();
        hand_on(&slot, next);
    }
}

impl Member for Tunnel {
    type Permit = Permit;

    fn is_alive(&self) -> bool {
        Self::is_alive(self) && (self.limit() > 0 || self.active_streams() > 0)
    }

    fn active(&self) -> usize {
        self.active_streams()
    }

    fn idle_since(&self) -> Option<Instant> {
        Self::idle_since(self)
    }

    fn busy(&self) -> u64 {
        Self::busy(self)
    }

    fn reserve(&self) -> Option<Permit> {
        Self::reserve(self)
    }
}
