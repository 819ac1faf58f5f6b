//! Shutdown of the process: SIGTERM, SIGINT or `/quitquitquit` starts the drain, a SIGINT during the drain ends it.

use std::time::Duration;

use isthmus_rt::drain::{Drain, Outcome};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::RunError;
use super::handover::Handover;

/// Signal handlers. Installed first, so that a signal during the start is not lost.
pub(super) struct Signals {
    term: Signal,
    interrupt: Signal,
}

/// How the drain ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Drained {
    /// All connections ended, or the deadline closed them.
    Done,
    /// A SIGINT cut it short.
    Interrupted,
}

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub(super) fn install() -> Result<Self, RunError> {
        let on = |kind| signal(kind).map_err(RunError::os("signal handlers"));
        Ok(Self { term: on(SignalKind::terminate())?, interrupt: on(SignalKind::interrupt())? })
    }

    /// Resolves with the cause when the process is asked to stop.
    pub(super) async fn stop(&mut self, quit: &mut mpsc::Receiver<()>) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            Some(()) = quit.recv() => "quitquitquit",
        }
    }

    /// Hands over, if there is a successor, and drains what is left, both until the deadline. A SIGINT meanwhile is an
    /// operator at a terminal: the process stops at once.
    pub(super) async fn drain(
        &mut self,
        drain: Drain,
        deadline: Duration,
        why: &str,
        handover: Option<Handover>,
    ) -> Drained {
        let started = Instant::now();
        let shutdown = async {
            if let Some(handover) = handover {
                handover.leave(&drain, deadline).await;
            }
            tracing::info!(why, ?deadline, "draining, no new connections are accepted");
            drain.shutdown(deadline.saturating_sub(started.elapsed())).await
        };
        tokio::select! {
            outcome = shutdown => {
                if outcome == Outcome::Forced {
                    tracing::warn!(?deadline, "connections were still open at the drain deadline and were closed");
                }
                Drained::Done
            }
            _ = self.interrupt.recv() => {
                tracing::warn!("SIGINT while draining, stopping at once");
                Drained::Interrupted
            }
        }
    }
}
