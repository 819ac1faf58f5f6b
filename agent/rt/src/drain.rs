//! Graceful shutdown: signal all watchers to drain, wait until they are done or the deadline passes, then force them.
//!
//! Holding a [`Watch`] *is* being active: [`Drain::shutdown`] returns as soon as every clone is gone.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::latch::Latch;

/// How far the shutdown is.
#[derive(Debug, Default)]
struct Phases {
    closing: Arc<Latch>,
    graceful: Arc<Latch>,
    forced: Arc<Latch>,
}

/// How a shutdown ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All work finished before the deadline.
    Drained,
    /// The deadline passed, and the remaining work was signalled to stop at once.
    Forced,
}

/// The side that starts the shutdown.
#[derive(Debug)]
pub struct Drain {
    phases: Arc<Phases>,
    active: mpsc::Receiver<()>,
}

/// The side that is shut down. Work that must be waited for holds a clone.
#[derive(Debug, Clone)]
pub struct Watch {
    phases: Arc<Phases>,
    _active: mpsc::Sender<()>,
}

/// A new pair.
#[must_use]
pub fn channel() -> (Drain, Watch) {
    let phases = Arc::<Phases>::default();
    let (active_tx, active) = mpsc::channel(1);
    (Drain { phases: Arc::clone(&phases), active }, Watch { phases, _active: active_tx })
}

// === impl Drain ===

impl Drain {
    /// Nothing new is accepted from now on, but what is open goes on as if there were no shutdown: it may be handed over
    /// before [`Self::shutdown`] begins the drain.
    pub fn close(&self) {
        self.phases.closing.set();
    }

    /// Signals every watcher to drain, waits at most `deadline`, then forces the remaining ones and waits a second for them.
    pub async fn shutdown(mut self, deadline: Duration) -> Outcome {
        self.phases.closing.set();
        self.phases.graceful.set();
        if tokio::time::timeout(deadline, self.active.recv()).await.is_ok() {
            return Outcome::Drained;
        }
        self.phases.force();
        // Watchers drop their clones at once when forced; the timeout is for one that ignores it.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.active.recv()).await;
        Outcome::Forced
    }

    /// Forces every watcher to stop at once.
    pub async fn kill(self) -> Outcome {
        self.shutdown(Duration::ZERO).await
    }
}

impl Drop for Drain {
    /// Without a shutdown the watchers stop at once.
    fn drop(&mut self) {
        self.phases.force();
    }
}

// === impl Phases ===

impl Phases {
    fn force(&self) {
        self.closing.set();
        self.graceful.set();
        self.forced.set();
    }
}

// === impl Watch ===

impl Watch {
    /// Resolves when listeners should close: when the drain begins, or before it, while what is open is handed over.
    pub async fn closing(&self) {
        self.phases.closing.wait().await;
    }

    /// Resolves when the drain begins: no new work should be accepted.
    pub async fn graceful(&self) {
        self.phases.graceful.wait().await;
    }

    /// Resolves when the remaining work must stop at once.
    pub async fn forced(&self) {
        self.phases.forced.wait().await;
    }

    /// Whether the drain has begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.phases.graceful.is_set()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ends_when_the_last_watcher_is_gone() {
        let (drain, watch) = channel();
        let work = async move {
            watch.graceful().await;
            assert!(watch.is_draining());
        };
        let (outcome, ()) = tokio::join!(drain.shutdown(Duration::from_secs(5)), work);
        assert_eq!(outcome, Outcome::Drained);
    }

    #[tokio::test(start_paused = true)]
    async fn listeners_close_before_the_drain_or_with_it() {
        let (drain, watch) = channel();
        drain.close();
        watch.closing().await;
        assert!(!watch.is_draining(), "what is open goes on");
        drop(watch);
        assert_eq!(drain.shutdown(Duration::ZERO).await, Outcome::Drained);
        let (drain, watch) = channel();
        let (_, ()) =
            tokio::join!(drain.shutdown(Duration::from_secs(5)), async move { watch.closing().await });
    }

    #[tokio::test(start_paused = true)]
    async fn forces_at_the_deadline() {
        let (drain, watch) = channel();
        let work = async move { watch.forced().await };
        let start = tokio::time::Instant::now();
        let (outcome, ()) = tokio::join!(drain.shutdown(Duration::from_secs(5)), work);
        assert_eq!(outcome, Outcome::Forced);
        assert_eq!(start.elapsed().as_secs(), 5);
    }
}
