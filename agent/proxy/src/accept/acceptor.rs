//! The accept loop of one listener: each connection in a task of its own, until the drain begins. Owns which errors of
//! `accept` end nothing; knows no protocol.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use isthmus_rt::backoff::Backoff;
use isthmus_rt::drain::Watch;
use isthmus_rt::fair::Share;
use isthmus_rt::task::{Spawnable, Tasks};

use super::handshake_slots::HandshakeSlots;
use super::listener::{Accepted, BoundListener};

/// How a listener is served.
pub(crate) struct Acceptor {
    pub(crate) bound: BoundListener,
    /// For logs: which listener, of whom.
    pub(crate) what: &'static str,
    pub(crate) owner: Arc<str>,
    /// The pod's share of CPU time: admits connections, which run on it. The accept loop's own task is its owner's.
    pub(crate) share: Arc<Share>,
    /// Connections that may be set up at once; the rest waits in the backlog, where it costs us nothing.
    pub(crate) limit: Option<Arc<HandshakeSlots>>,
    pub(crate) drain: Watch,
}

impl Acceptor {
    /// Accepts until the drain begins, each connection in a task of its own, then closes the listener and waits for
    /// them. Dropping the future ends them. No error of `accept` ends the loop: those that concern one connection are
    /// skipped, those that concern us (no file descriptors left) are waited out.
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
                    connections.spawn(self.what, serve(accepted, self.drain.clone()));
                }
                Err(error) if is_of_one_connection(&error) => {
                    tracing::debug!(listener = self.what, pod = %self.owner, %error, "a client left before it was accepted");
                }
                Err(error) => {
                    let wait = backoff.next_delay();
                    tracing::warn!(listener = self.what, pod = %self.owner, %error, retry_in = ?wait, "cannot accept");
                    tokio::time::sleep(wait).await;
                }
            }
        }
        for accepted in self.bound.into_backlog() {
            connections.spawn(self.what, serve(accepted, self.drain.clone()));
        }
        // Connections hold their own clones; ours must not keep the drain waiting.
        drop((self.drain, serve));
        connections.wait().await;
    }

    async fn next(&self) -> io::Result<Accepted> {
        let mut place = match &self.limit {
            Some(limit) => Some(limit.take().await),
            None => None,
        };
        self.share.admit().await;
        let accepted = self.bound.accept().await?;
        if let Some(place) = &mut place {
            place.begin();
        }
        Ok(Accepted { place, ..accepted })
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
