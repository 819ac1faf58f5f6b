//! The agent's hand-over: it waits for its predecessor's connections while it serves, and gives its own to its successor
//! before it drains.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use isthmus_handover::{Left, Listener, Metrics, hand_over};
use isthmus_rt::drain::Drain;
use isthmus_rt::metrics::Registry;
use isthmus_rt::ready::Readiness;
use isthmus_rt::task::Tasks;
use tokio::time::Instant;

use crate::wiring::handover::{Leaving, Successor};
use crate::wiring::pods::Pods;

/// Both sides of one agent.
pub(super) struct Handover {
    path: PathBuf,
    pods: Arc<Pods>,
    metrics: Arc<Metrics>,
    listening: Tasks,
}

impl Handover {
    /// Listens for the predecessor once the pods of the node are served.
    pub(super) fn start(path: PathBuf, pods: Arc<Pods>, registry: &Registry, readiness: Readiness) -> Self {
        let (metrics, listening) = (Metrics::register(registry), Tasks::new("hand-over"));
        let (socket, counts, successor) =
            (path.clone(), Arc::clone(&metrics), Arc::new(Successor(Arc::clone(&pods))));
        listening.spawn("predecessor", async move {
            // An agent that is not ready must not take the place of one that is.
            readiness.released(isthmus_inpod::manager::READINESS).await;
            match Listener::bind(&socket) {
                Ok(listener) => {
                    tracing::info!(socket = %socket.display(), "ready for the connections of a predecessor");
                    listener.serve(successor, counts).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot listen for a hand-over, connections of the predecessor are drained");
                }
            }
        });
        Self { path, pods, metrics, listening }
    }

    /// Gives the connections to the successor, if there is one. What is left afterwards is to be drained.
    pub(super) async fn leave(self, drain: &Drain, limit: Duration) {
        let Self { path, pods, metrics, listening } = self;
        // The path leads to this agent unless a newer one listens there.
        listening.abort_all().await;
        let source = Leaving::new(pods, drain, Arc::clone(&metrics));
        let until = Instant::now() + limit;
        match hand_over(&path, &source, &metrics, env!("CARGO_PKG_VERSION"), until).await {
            Left::NoSuccessor => tracing::info!("no successor listens for a hand-over"),
            Left::Finished(summary) => {
                let (handed_over, returned) = (summary.handed_over, summary.returned);
                let (pause_p99, pause_max) = (summary.pause(1), summary.pause(0));
                tracing::info!(
                    handed_over,
                    returned,
                    ?pause_p99,
                    ?pause_max,
                    "connections were handed over to the successor"
                );
            }
            Left::Broken(summary, error) => {
                let handed_over = summary.handed_over;
                tracing::warn!(%error, handed_over, "the hand-over ended early, what is left is drained");
            }
        }
    }
}
