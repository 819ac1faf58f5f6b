//! Graceful shutdown: signal all watchers to drain, wait until they are done or the deadline passes, then force them.
//!
//! Holding a [`Watch`] *is* being active: [`Drain::shutdown`] returns as soon as every clone is gone.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

/// Phase of the shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Running,
    Graceful,
    Forced,
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
    phase: watch::Sender<Phase>,
    active: mpsc::Receiver<()>,
}

/// The side that is shut down. Work that must be waited for holds a clone.
#[derive(Debug, Clone)]
pub struct Watch {
    phase: watch::Receiver<Phase>,
    _active: mpsc::Sender<()>,
}

/// A new pair.
#[must_use]
pub fn channel() -> (Drain, Watch) {
    let (phase, phase_rx) = watch::channel(Phase::Running);
    let (active_tx, active) = mpsc::channel(1);
    (Drain { phase, active }, Watch { phase: phase_rx, _active: active_tx })
}

// === impl Drain ===

impl Drain {
    /// Signals every watcher to drain, waits at most `deadline`, then forces the remaining ones and waits a second for them.
    pub async fn shutdown(mut self, deadline: Duration) -> Outcome {
        self.phase.send_replace(Phase::Graceful);
        if tokio::time::timeout(deadline, self.active.recv()).await.is_ok() {
            return Outcome::Drained;
        }
        self.phase.send_replace(Phase::Forced);
        // Watchers drop their clones at once when forced; the timeout is for one that ignores it.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.active.recv()).await;
        Outcome::Forced
    }

    /// Forces every watcher to stop at once.
    pub async fn kill(self) -> Outcome {
        self.shutdown(Duration::ZERO).await
    }
}

// === impl Watch ===

impl Watch {
    /// Resolves when the drain begins: no new work should be accepted.
    pub async fn graceful(&self) {
        self.wait_for(Phase::Graceful).await;
    }

    /// Resolves when the remaining work must stop at once.
    pub async fn forced(&self) {
        self.wait_for(Phase::Forced).await;
    }

    /// Whether the drain has begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.phase.borrow() >= Phase::Graceful
    }

    async fn wait_for(&self, wanted: Phase) {
        let mut phase = self.phase.clone();
        // An error means that the owner dropped its side without a shutdown: stop at once.
        let _ = phase.wait_for(|phase| *phase >= wanted).await;
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
    async fn forces_at_the_deadline() {
        let (drain, watch) = channel();
        let work = async move { watch.forced().await };
        let start = tokio::time::Instant::now();
        let (outcome, ()) = tokio::join!(drain.shutdown(Duration::from_secs(5)), work);
        assert_eq!(outcome, Outcome::Forced);
        assert_eq!(start.elapsed().as_secs(), 5);
    }
}
