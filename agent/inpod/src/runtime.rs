//! The seam between the ZDS client and what serves a pod: [`PodRuntime`], implemented by the composition root. It must
//! not know what serving a pod takes.

use isthmus_model::{PodRef, PodUid};
use isthmus_rt::BoxFuture;
use isthmus_sys::netns::Netns;

/// A pod that the node role has enrolled: its traffic is redirected to the agent already.
#[derive(Debug, Clone)]
pub struct EnrolledPod {
    /// Which pod.
    pub pod: PodRef,
    /// The pod's network namespace, in which the agent's listeners are opened.
    pub netns: Netns,
}

/// Why a pod cannot be served now. All of these are retried. The text goes to the node role in the ZDS ack, and from
/// there into the event of the pod whose creation fails.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The agent drains: it accepts no more pods, its successor will.
    #[error("the agent is shutting down")]
    ShuttingDown,
    /// The file descriptor that came with the request cannot be used. The node role's mistake.
    #[error("file descriptor passed as network namespace: {0}")]
    Netns(isthmus_sys::Error),
    /// A part of the pod's data plane does not start, for example because a port is in use inside the pod.
    #[error("{component}: {cause}")]
    Component {
        /// Which part: `listeners`, `DNS proxy`.
        component: &'static str,
        /// Why.
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What happens to a pod's open connections when the agent stops serving it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// They may finish, within the drain deadline.
    Drain,
    /// They are reset.
    Immediate,
}

/// Serves pods.
pub trait PodRuntime: Send + Sync {
    /// Opens the pod's listeners and returns once they accept connections. The node role waits at most 5 s for the ack
    /// that follows.
    fn start(&self, pod: EnrolledPod) -> BoxFuture<'_, Result<(), StartError>>;

    /// Stops serving the pod. With [`StopMode::Immediate`] it returns when the listeners are closed, so that their
    /// ports can be bound again; with [`StopMode::Drain`] at once, because the next ZDS request waits for the return:
    /// the listeners are closed and open connections finish in the background.
    fn stop<'a>(&'a self, uid: &'a PodUid, mode: StopMode) -> BoxFuture<'a, ()>;
}
