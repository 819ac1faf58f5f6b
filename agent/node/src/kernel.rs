//! Everything the node role does to the kernel, behind one trait of blocking calls, so that the order of enrolment can be
//! tested without privileges. The real one calls `isthmus_sys` and the rule sets; it must not know why it is called.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use isthmus_model::name::PodUid;
use isthmus_sys::netns::Netns;

use crate::netns_find::Wanted;
use crate::pod::Capture;

mod host;
mod kubelet;

pub use host::Host;

/// What the kernel is asked for. Every call blocks for milliseconds.
pub trait Kernel: Send + Sync + 'static {
    /// Opens the namespace that a plugin event names.
    ///
    /// # Errors
    /// When the path leads out of the runtime's folder, is no network namespace, or is the host's.
    fn open(&self, path: &Path) -> Result<Netns, KernelError>;

    /// Finds the namespaces of running pods. A pod that is missing from the answer was not found.
    ///
    /// # Errors
    /// When nothing can be searched at all.
    fn find(&self, wanted: &[Wanted]) -> Result<HashMap<PodUid, Netns>, KernelError>;

    /// Puts a pod's rules in, replacing what is there.
    ///
    /// # Errors
    /// When the kernel refuses; some of it may be in.
    fn apply_pod(&self, netns: &Netns, capture: &Capture) -> Result<(), KernelError>;

    /// Takes a pod's rules out; none there is success.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn remove_pod(&self, netns: &Netns) -> Result<(), KernelError>;

    /// Puts the host's rules in; the set of probed addresses keeps its entries.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn apply_host(&self) -> Result<(), KernelError>;

    /// The addresses that probes are let through to, each with its pod.
    ///
    /// # Errors
    /// When the set cannot be read.
    fn probes(&self) -> Result<Vec<Probe>, KernelError>;

    /// Lets probes through to an address; an entry of another pod is replaced.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn add_probe(&self, probe: &Probe) -> Result<(), KernelError>;

    /// Takes an entry out, if it is this pod's: its address may be another pod's already.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn remove_probe(&self, probe: &Probe) -> Result<(), KernelError>;
}

/// An address that kubelet's probes are let through to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// The address of the pod.
    pub ip: IpAddr,
    /// The pod.
    pub uid: PodUid,
}

/// Why the kernel, or what we know of it, said no.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A plugin event named something else than a pod's namespace.
    #[error("netns path {path:?} is refused: {reason}")]
    Refused {
        /// What it named.
        path: PathBuf,
        /// Why that is no pod's.
        reason: String,
    },
    /// A system call failed.
    #[error("{what}: {reason}")]
    Failed {
        /// The step.
        what: &'static str,
        /// The kernel's answer.
        reason: String,
    },
}

impl KernelError {
    /// A failed step, in the words of whoever made it.
    pub(crate) fn failed<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |reason| Self::Failed { what, reason: reason.to_string() }
    }
}
