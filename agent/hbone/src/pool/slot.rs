//! One key's place in the pool: the lock around its [`Entry`], and the waiting callers' channels. No channel is used under
//! the lock: a message that its receiver did not take comes back and is dropped, which takes the lock again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::connect::{ConnectFailure, Stage};
use super::entry::{Entry, LoadPolicy, PooledTunnel};
use crate::client::Tunnel;
use crate::error::TunnelError;
use crate::usage::StreamPermit;

/// The channel to a waiting caller.
pub(super) type Waiter = oneshot::Sender<WaitOutcome>;

#[derive(Debug)]
pub(super) struct Slot(Mutex<Entry<Tunnel, Waiter>>);

/// What a waiting caller waited for.
#[derive(Debug)]
pub(super) enum WaitOutcome {
    /// It can open its stream here.
    Use(Tunnel, StreamPermit),
    /// It dials.
    Dial(DialGuard),
    /// The dial that it waited for failed.
    Failed(ConnectFailure),
}

/// A dial in progress. Dropped without a result, it passes to the next waiting caller.
#[derive(Debug)]
pub(super) struct DialGuard(Option<Arc<Slot>>);

/// A tunnel with one stream reserved.
pub(super) struct Lease {
    pub(super) tunnel: Tunnel,
    pub(super) permit: StreamPermit,
    pub(super) reused: bool,
}

// === impl Slot ===

impl Slot {
    pub(super) fn new(policy: LoadPolicy) -> Self {
        Self(Mutex::new(Entry::new(policy)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Entry<Tunnel, Waiter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives free streams to waiting callers.
    pub(super) fn serve_waiters(&self) {
        loop {
            let Some((waiter, tunnel, permit)) = self.lock().next_grant() else { return };
            let _ = waiter.send(WaitOutcome::Use(tunnel, permit));
        }
    }
}

// === impl DialGuard ===

impl DialGuard {
    pub(super) fn new(slot: Arc<Slot>) -> Self {
        Self(Some(slot))
    }

    /// Reports the result of the dial to the entry and to the callers that waited for it.
    pub(super) fn complete(
        mut self,
        dialled: Result<Tunnel, ConnectFailure>,
    ) -> Result<Lease, ConnectFailure> {
        let slot = self.0.take();
        match (dialled, slot) {
            (Ok(tunnel), slot) => {
                let permit = tunnel.reserve();
                if let Some(slot) = slot {
                    slot.lock().dial_succeeded(tunnel.clone());
                    slot.serve_waiters();
                    let next = slot.lock().next_dialler();
                    pass_dial(&slot, next);
                }
                let lost = || tunnel.ended().cloned().unwrap_or(TunnelError::Closed);
                let permit = permit.ok_or_else(|| ConnectFailure::new(Stage::Handshake, lost()))?;
                Ok(Lease { tunnel, permit, reused: false })
            }
            (Err(failure), slot) => {
                let waiters = slot.map(|slot| slot.lock().dial_failed()).unwrap_or_default();
                for waiter in waiters {
                    let _ = waiter.send(WaitOutcome::Failed(failure.clone()));
                }
                Err(failure)
            }
        }
    }
}

/// Makes a waiting caller the dialler; if it has gone, the next one.
fn pass_dial(slot: &Arc<Slot>, mut waiter: Option<Waiter>) {
    while let Some(next) = waiter {
        let guard = DialGuard::new(Arc::clone(slot));
        let Err(WaitOutcome::Dial(mut returned)) = next.send(WaitOutcome::Dial(guard)) else {
            return;
        };
        // Disarmed: its drop would pass on the dial once more.
        returned.0 = None;
        waiter = slot.lock().dial_abandoned();
    }
}

impl Drop for DialGuard {
    fn drop(&mut self) {
        let Some(slot) = self.0.take() else { return };
        let next = slot.lock().dial_abandoned();
        pass_dial(&slot, next);
    }
}

impl PooledTunnel for Tunnel {
    type Permit = StreamPermit;

    fn is_alive(&self) -> bool {
        Self::is_alive(self) && (self.limit() > 0 || self.active_streams() > 0)
    }

    fn active(&self) -> usize {
        self.active_streams()
    }

    fn idle_since(&self) -> Option<Instant> {
        Self::idle_since(self)
    }

    fn reserve(&self) -> Option<StreamPermit> {
        Self::reserve(self)
    }
}
