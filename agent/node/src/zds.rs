//! ZDS, the server's side: how the agents of this node learn of the pods that they serve. It owns the socket, the
//! connections and what each agent has acknowledged; it must not know rules, annotations or why a pod is enrolled.

pub(crate) mod registry;
pub(crate) mod server;
pub(crate) mod session;

use isthmus_model::{PodRef, PodUid};
use isthmus_rt::BoxFuture;
use isthmus_sys::netns::Netns;
use tokio::time::Instant;

/// The agents of this node, as the enrolment of a pod needs them.
pub trait DataPlane: Send + Sync + 'static {
    /// Sends the pod to the newest connection and waits for its ack. From here on the snapshot of every connection
    /// names the pod, whether this call succeeds or not.
    fn add<'a>(
        &'a self,
        pod: &'a PodRef,
        netns: Netns,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<(), AgentError>>;

    /// Names the pod in snapshots from now on and sends nothing. `netns` is `None` when the pod's network namespace
    /// was not found; an agent that serves the pod already is then asked to keep it.
    fn adopt(&self, pod: &PodRef, netns: Option<Netns>);

    /// Sends the removal to every connection and waits for the acks. A connection that fails meanwhile learns of it
    /// from its next snapshot.
    fn del<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()>;
}

/// Why the agent does not serve a pod. All are worth a retry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentError {
    /// The agent (ztunnel) of this node is not running, or not ready, or uses another socket.
    #[error("no agent is connected to the ZDS socket; is the ztunnel pod of this node running?")]
    NotConnected,
    /// The agent answered with an error.
    #[error("the agent refused: {0}")]
    Refused(String),
    /// The agent did not ack before the deadline.
    #[error("the agent did not answer in time")]
    TimedOut,
    /// The connection ended before the ack.
    #[error("the agent disconnected: {0}")]
    Disconnected(String),
    /// The agent acks more slowly than pods come.
    #[error("the agent is too far behind: {0} requests wait for it")]
    Backlogged(usize),
}
