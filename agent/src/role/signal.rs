//! When to stop: SIGTERM, SIGINT, or somebody's `/quitquitquit`; and how: draining, unless SIGINT comes again.

use std::time::Duration;

use isthmus_rt::drain::{Drain, Outcome};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::RunError;

/// The signals of the process, from the moment this was made: one that comes during the start is not lost.
pub(super) struct Signals {
    term: Signal,
    interrupt: Signal,
}

/// How the drain ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Drained {
    /// By itself or at its deadline.
    Done,
    /// Somebody would not wait.
    AtOnce,
}

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn install() -> Result<Self, RunError> {
        let on = |kind| signal(kind).map_err(RunError::os("signal handlers"));
        Ok(Self { term: on(SignalKind::terminate())?, interrupt: on(SignalKind::interrupt())? })
    }

    /// Resolves with the reason when the process should end.
    pub(super) async fn stop(&mut self, quit: &mut mpsc::Receiver<()>) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            Some(()) = quit.recv() => "quitquitquit",
        }
    }

    /// Lets connections end until the deadline. SIGINT while that lasts is somebody at a terminal who means it.
    pub(super) async fn drain(&mut self, drain: Drain, deadline: Duration, why: &str) -> Drained {
        tracing::info!(why, ?deadline, "draining");
        tokio::select! {
            outcome = drain.shutdown(deadline) => {
                if outcome == Outcome::Forced {
                    tracing::warn!(?deadline, "connections were still open at the deadline and were closed");
                }
                Drained::Done
            }
            _ = self.interrupt.recv() => {
                tracing::warn!("SIGINT while draining: ending at once");
                Drained::AtOnce
            }
        }
    }
}
