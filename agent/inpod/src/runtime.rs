//! The seam between the ZDS client and what serves a pod: [`PodRuntime`], implemented by the composition root. It must
//! not know what serving a pod takes.

use isthmus_model::{PodRef, PodUid};
use isthmus_rt::BoxFuture;
use isthmus_sys::limits::is_out_of_descriptors;
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
        /// Whether every pod would meet it.
        whose: Blame,
        /// Which part: `listeners`, `DNS proxy`.
        component: &'static str,
        /// Why.
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Whose condition a failed start is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The pod's: something in its namespace is in the way. Other pods start, and the agent is ready.
    Pod,
    /// The agent's: it lacks descriptors, memory or capabilities, and is not ready until the start succeeds.
    Process,
}

impl Blame {
    /// By the answer of the kernel, when sockets are made in a pod.
    #[must_use]
    pub fn of(error: &isthmus_sys::Error) -> Self {
        use std::io::ErrorKind::{OutOfMemory, PermissionDenied};
        let cause = error.cause();
        let is_of_process =
            is_out_of_descriptors(cause) || matches!(cause.kind(), OutOfMemory | PermissionDenied);
        if is_of_process { Self::Process } else { Self::Pod }
    }
}

impl StartError {
    /// Whose condition it is.
    #[must_use]
    pub fn whose(&self) -> Blame {
        match self {
            Self::ShuttingDown => Blame::Process,
            Self::Netns(error) => Blame::of(error),
            Self::Component { whose, .. } => *whose,
        }
    }
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
