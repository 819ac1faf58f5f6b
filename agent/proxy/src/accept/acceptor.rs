//! The accept loop of one listener: starts a task per connection, on the thread that suits it, until the drain starts.
//! Decides how errors of `accept` are handled; knows no protocol.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use isthmus_rt::backoff::Backoff;
use isthmus_rt::drain::Watch;
use isthmus_rt::fair::Share;
use isthmus_rt::task::{Spawnable, Tasks};
use isthmus_rt::threads::Threads;

use super::admission::Admission;
use super::handover::Handover;
use super::listener::{Accepted, BoundListener};
use super::placement::Placement;

/// A listener and what its accept loop needs.
pub(crate) struct Acceptor {
    pub(crate) bound: BoundListener,
    /// Name of the listener, for logs and task names.
    pub(crate) name: &'static str,
    /// The pod or gateway, for logs and task names.
    pub(crate) owner: Arc<str>,
    /// The pod's share of CPU time, on which the connections run.
    pub(crate) share: Arc<Share>,
    /// What a connection gets before it is served.
    pub(crate) admission: Admission,
    pub(crate) threads: Threads,
    /// Which thread carries a connection.
    pub(crate) placement: Placement,
    pub(crate) drain: Watch,
    /// Of the process: the listener closes before the drain when connections are handed over.
    pub(crate) process: Watch,
}

impl Acceptor {
    /// Accepts until the drain starts or the process closes its listeners, then closes the listener and waits for its connections. Dropping the future
    /// aborts them. No error of `accept` ends the loop: errors of one connection are skipped, errors of the process
    /// (no file descriptor left) are retried after a backoff. `serve` is called on the connection's thread.
    pub(crate) async fn run<F, Fut>(self, serve: F)
    where
        F: Fn(Accepted, Watch) -> Fut + Send + Sync + 'static,
        Fut: Spawnable + Future<Output = ()>,
    {
        let Self { name, owner, admission, threads, placement, drain, .. } = &self;
        let connections = Tasks::new(Arc::clone(owner)).on(Arc::clone(&self.share));
        let (threads, placement, drain) = (threads.clone(), *placement, drain.clone());
        let (admission, serve) = (Arc::new(admission.clone()), Arc::new(serve));
        let handover = Handover { name, admission, threads, placement, connections, drain, serve };
        let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_secs(1));
        loop {
            let next = tokio::select! {
                biased;
                () = self.drain.graceful() => break,
                () = self.process.closing() => break,
                next = self.next() => next,
            };
            match next {
                Ok(accepted) => {
                    backoff.reset();
                    handover.start(accepted);
                }
                Err(error) if is_of_one_connection(&error) => {
                    tracing::debug!(listener = name, pod = %owner, %error, "connection closed before it was accepted");
                }
                Err(error) => {
                    self.admission.record_failure(&error);
                    let wait = backoff.next_delay();
                    tracing::warn!(listener = name, pod = %owner, %error, retry_in = ?wait, "cannot accept connections");
                    tokio::time::sleep(wait).await;
                }
            }
        }
        self.bound.into_backlog().for_each(|accepted| handover.start(accepted));
        // Each connection has its own clone of the watch; one that is kept here would block the drain.
        drop(self.drain);
        handover.finish().await;
    }

    async fn next(&self) -> io::Result<Accepted> {
        self.admission.pace().await;
        self.bound.accept().await
    }
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
