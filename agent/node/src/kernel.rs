//! Everything the node role does to the kernel, behind one trait of blocking calls, so that the order of enrolment is
//! tested without privileges. It must not know when, or for which pods, it is called.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use isthmus_model::PodUid;
use isthmus_sys::netns::Netns;

use crate::netns_lookup::NetnsQuery;
use crate::pod::CaptureConfig;

pub mod host;
mod kubelet;
mod sandbox_records;

/// The kernel operations of enrolment. Every call blocks for milliseconds.
pub trait Kernel: Send + Sync + 'static {
    /// Opens the network namespace that a plugin event names for a pod, and records it as the pod's.
    ///
    /// # Errors
    /// [`KernelError::NetnsRefused`] when the file is not a network namespace, or is the host's or another pod's.
    fn open_netns(&self, path: &Path, uid: &PodUid) -> Result<Netns, KernelError>;

    /// Forgets what was recorded of a pod that is deleted.
    fn forget_netns(&self, uid: &PodUid);

    /// Finds the network namespaces of running pods by evidence: the cgroup of their processes, or the record of their
    /// creation. A pod without an entry in the result was not found.
    ///
    /// # Errors
    /// When nothing can be searched at all.
    fn find_netns(&self, queries: &[NetnsQuery]) -> Result<HashMap<PodUid, Netns>, KernelError>;

    /// Writes a pod's packet rules, replacing those that are there.
    ///
    /// # Errors
    /// When the kernel refuses; routes may have been added, packet rules are as before.
    fn apply_pod(&self, netns: &Netns, capture: &CaptureConfig) -> Result<(), KernelError>;

    /// Removes a pod's packet rules; success when there are none.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn remove_pod(&self, netns: &Netns) -> Result<(), KernelError>;

    /// Writes the host's rules; the sets of probed addresses keep their entries.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn apply_host(&self) -> Result<(), KernelError>;

    /// The entries of the host's probe sets.
    ///
    /// # Errors
    /// When the sets cannot be read.
    fn probe_targets(&self) -> Result<Vec<ProbeTarget>, KernelError>;

    /// Adds an entry to the host's probe sets, replacing another pod's entry of the same address.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn add_probe_target(&self, target: &ProbeTarget) -> Result<(), KernelError>;

    /// Removes an entry if it is this pod's: its address may have been given to another pod already.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn remove_probe_target(&self, target: &ProbeTarget) -> Result<(), KernelError>;
}

/// An entry of the host's probe sets: a pod's address, to which the kubelet's probes are source-translated so that the
/// pod's rules let them through.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProbeTarget {
    /// An address of the pod.
    pub ip: IpAddr,
    /// The pod; stored as the comment of the set's element.
    pub uid: PodUid,
}

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
