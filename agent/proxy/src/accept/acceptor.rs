//! The accept loop of one listener: spawns a task per connection until the drain starts. Decides how errors of `accept`
//! are handled; knows no protocol.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use isthmus_rt::backoff::Backoff;
use isthmus_rt::drain::Watch;
use isthmus_rt::fair::Share;
use isthmus_rt::task::{Spawnable, Tasks};
use tracing::{Instrument as _, Span};

use super::handshake_slots::HandshakeSlots;
use super::listener::{Accepted, BoundListener};

/// A listener and what its accept loop needs.
pub(crate) struct Acceptor {
    pub(crate) bound: BoundListener,
    /// Name of the listener, for logs and task names.
    pub(crate) name: &'static str,
    /// The pod or gateway, for logs and task names.
    pub(crate) owner: Arc<str>,
    /// The pod's share of CPU time: it delays accepting while the pod exceeds it, and the connections run on it.
    pub(crate) share: Arc<Share>,
    /// Limit of handshakes in progress; connections above it stay in the kernel's backlog, where they hold no memory of
    /// this process.
    pub(crate) handshakes: Option<Arc<HandshakeSlots>>,
    pub(crate) drain: Watch,
}

impl Acceptor {
    /// Accepts until the drain starts, then closes the listener and waits for its connections. Dropping the future
    /// aborts them. No error of `accept` ends the loop: errors of one connection are skipped, errors of the process
    /// (no file descriptor left) are retried after a backoff.
    pub(crate) async fn run<F, Fut>(self, mut serve: F)
    where
        F: FnMut(Accepted, Watch) -> Fut,
        Fut: Spawnable + Future<Output = ()>,
    {
        let connections = Tasks::new(Arc::clone(&self.owner)).on(Arc::clone(&self.share));
        let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_secs(1));
        loop {
            let next = tokio::select! {
                biased;
                () = self.drain.graceful() => break,
                next = self.next() => next,
            };
            match next {
                Ok(accepted) => {
                    backoff.reset();
                    let span = connection_span(self.name, &accepted);
                    connections.spawn(self.name, serve(accepted, self.drain.clone()).instrument(span));
                }
                Err(error) if is_of_one_connection(&error) => {
                    let (listener, pod) = (self.name, &self.owner);
                    tracing::debug!(listener, %pod, %error, "connection closed before it was accepted");
                }
                Err(error) => {
                    let wait = backoff.next_delay();
                    let (listener, pod) = (self.name, &self.owner);
                    tracing::warn!(listener, %pod, %error, retry_in = ?wait, "cannot accept connections");
                    tokio::time::sleep(wait).await;
                }
            }
        }
        for accepted in self.bound.into_backlog() {
            let span = connection_span(self.name, &accepted);
            connections.spawn(self.name, serve(accepted, self.drain.clone()).instrument(span));
        }
        // Each connection has its own clone of the watch; one that is kept here would block the drain.
        drop((self.drain, serve));
        connections.wait().await;
    }

    async fn next(&self) -> io::Result<Accepted> {
        let mut slot = match &self.handshakes {
            Some(handshakes) => Some(handshakes.acquire().await),
            None => None,
        };
        self.share.admit().await;
        let accepted = self.bound.accept().await?;
        if let Some(slot) = &mut slot {
            // The slot was acquired before there was a connection; its grace period starts with the connection.
            slot.restart_grace();
        }
        Ok(Accepted { slot, ..accepted })
    }
}

/// Disabled unless the scope logs at debug, and then costs nothing: at info, lines of a connection name it themselves.
fn connection_span(listener: &'static str, accepted: &Accepted) -> Span {
    tracing::debug_span!("connection", listener, src = %accepted.source, original_dst = %accepted.original)
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, NotConnected};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted | NotConnected
    )
}

#[cfg(test)]
mod tests;
