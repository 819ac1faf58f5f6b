//! Why a kernel operation failed. Every text ends up in a pod's events or in the node role's log.

use std::error::Error;
use std::io;
use std::path::PathBuf;

/// Why a kernel operation failed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A plugin event names something else than a pod's network namespace. The container runtime's or plugin's mistake:
    /// retrying does not help.
    #[error("netns path {path:?} is refused: {reason}")]
    NetnsRefused {
        /// The path in the event.
        path: PathBuf,
        /// What is wrong with it.
        reason: NetnsRefusal,
    },
    /// A system call failed. Worth a retry, except where the kernel lacks a module or the process a capability.
    #[error("{operation}: {cause}")]
    Failed {
        /// What was tried: `pod rules`, `host rules`, `probe addresses`.
        operation: &'static str,
        /// Which call on which object, and the kernel's answer.
        cause: Box<dyn Error + Send + Sync>,
    },
}

/// Why a path is not accepted as a pod's network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsRefusal {
    /// The path does not exist or may not be followed.
    #[error("{0}")]
    Path(io::Error),
    /// The file is not a network namespace.
    #[error(transparent)]
    NotANetns(isthmus_sys::Error),
    /// It is the network namespace of the host: rules in there would capture the node's own traffic.
    #[error("it is the host's network namespace")]
    Host,
    /// Processes of another pod are in it: this pod would act with that pod's traffic, or that one with this pod's.
    #[error("a process of the pod {0} is in it")]
    AnotherPods(String),
}

impl KernelError {
    /// For `map_err`: an operation that failed.
    pub(crate) fn failed<E>(operation: &'static str) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        move |cause| Self::Failed { operation, cause: cause.into() }
    }
}
