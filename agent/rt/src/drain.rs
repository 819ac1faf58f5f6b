//! Shutdown in three steps: ask everything to finish, wait until the deadline, then force.
//!
//! Holding a [`Watch`] *is* being active: [`Drain::shutdown`] returns as soon as every clone is gone.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

/// How far the shutdown has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Running,
    Graceful,
    Forced,
}

/// How a shutdown ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything finished by itself.
    Drained,
    /// The deadline passed and what was left was told to stop at once.
    Forced,
}

/// The side that orders the shutdown.
#[derive(Debug)]
pub struct Drain {
    phase: watch::Sender<Phase>,
    active: mpsc::Receiver<()>,
}

/// The side that is shut down. Keep a clone for as long as there is work that must be waited for.
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
    /// Asks every watcher to finish, waits at most `deadline`, then forces what is left and waits for it to notice.
    pub async fn shutdown(mut self, deadline: Duration) -> Outcome {
        self.phase.send_replace(Phase::Graceful);
        if tokio::time::timeout(deadline, self.active.recv()).await.is_ok() {
            return Outcome::Drained;
        }
        self.phase.send_replace(Phase::Forced);
        // Those that honour the force let go at once; one that does not is not worth waiting for.
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
    /// Resolves when new work should no longer be taken.
    pub async fn graceful(&self) {
        self.reached(Phase::Graceful).await;
    }

    /// Resolves when what is still running must stop now.
    pub async fn forced(&self) {
        self.reached(Phase::Forced).await;
    }

    /// Whether a shutdown has begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.phase.borrow() >= Phase::Graceful
    }

    async fn reached(&self, wanted: Phase) {
        let mut phase = self.phase.clone();
        // The owner dropped its side without a shutdown: nobody is left to wait for, so stop at once.
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
