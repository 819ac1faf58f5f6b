//! How many streams of a client tunnel are in use, and the permit for one.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

/// Usage of one tunnel. Streams keep this alive, but not the tunnel's sender.
#[derive(Debug)]
pub(crate) struct TunnelUsage {
    active: AtomicUsize,
    /// Our own limit, lowered when the peer refuses a stream below it.
    limit: AtomicUsize,
    ended: AtomicBool,
    idle_since: Mutex<Instant>,
}

/// The right to one stream of a tunnel, returned on drop.
#[derive(Debug)]
pub(crate) struct StreamPermit(Arc<TunnelUsage>);

impl TunnelUsage {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            active: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit),
            ended: AtomicBool::new(false),
            idle_since: Mutex::new(Instant::now()),
        }
    }

    /// Streams that are open or being opened.
    pub(crate) fn active(&self) -> usize {
        self.active.load(Ordering::Acquire)
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit.load(Ordering::Acquire)
    }

    /// The peer refused a stream: it allows no more than are open now.
    pub(crate) fn lower_limit(&self) {
        self.limit.fetch_min(self.active(), Ordering::AcqRel);
    }

    pub(crate) fn set_ended(&self) {
        self.ended.store(true, Ordering::Release);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Since when no stream is open; `None` while one is.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let since = *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner);
        (self.active() == 0).then_some(since)
    }

    /// A permit, if fewer than `limit` streams are in use.
    pub(crate) fn acquire(self: &Arc<Self>, limit: usize) -> Option<StreamPermit> {
        let more = |active: usize| (active < limit).then_some(active + 1);
        self.active.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(StreamPermit(Arc::clone(self)))
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        let mut since = self.0.idle_since.lock().unwrap_or_else(PoisonError::into_inner);
        if self.0.active.fetch_sub(1, Ordering::AcqRel) == 1 {
            *since = Instant::now();
        }
    }
}
