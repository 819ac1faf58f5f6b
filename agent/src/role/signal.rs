//! When to stop: SIGTERM, SIGINT, or somebody's `/quitquitquit`.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Resolves with the reason when the process should end.
///
/// # Errors
/// When the handlers cannot be installed.
pub(super) async fn stop(mut quit: mpsc::Receiver<()>) -> io::Result<&'static str> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        Some(()) = quit.recv() => "quitquitquit",
    })
}
