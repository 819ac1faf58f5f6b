//! Everything the node role does to the kernel, behind one trait of blocking calls, so that the order of enrolment is
//! tested without privileges. It must not know when, or for which pods, it is called.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use isthmus_model::PodUid;
use isthmus_sys::netns::Netns;

use crate::capture::{CaptureError, Gate, NetnsChanges, Sandbox, Stray};
use crate::netns_lookup::NetnsQuery;
use crate::pod::CaptureConfig;

mod error;
pub mod host;
mod kubelet;
mod prove;
mod sandbox_records;

pub use error::{KernelError, NetnsRefusal};

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

    /// Writes a pod's packet rules, replacing those that are there. A closed pod has the closing chain too: nothing
    /// leaves it that is not the agent's.
    ///
    /// # Errors
    /// When the kernel refuses; routes may have been added, packet rules are as before.
    fn apply_pod(&self, netns: &Netns, capture: &CaptureConfig, state: Gate) -> Result<(), KernelError>;

    /// Writes the packet rules of a pod that runs already, closed, and leaves alone the connections that it has. Returns how
    /// many those are; none when its traffic is redirected already.
    ///
    /// # Errors
    /// As [`Kernel::apply_pod`]; also when its connections cannot be told apart, the rules are then written all the same.
    fn capture_running(&self, netns: &Netns, capture: &CaptureConfig) -> Result<usize, KernelError>;

    /// Shows by canaries that a pod's traffic is captured, in both directions.
    ///
    /// # Errors
    /// With what shows that it is not, or cannot be.
    fn prove(&self, sandbox: &Sandbox) -> Result<(), CaptureError>;

    /// Compares a pod's rules with what they should be.
    ///
    /// # Errors
    /// With what is missing.
    fn compare(&self, sandbox: &Sandbox, state: Gate) -> Result<(), CaptureError>;

    /// Closes or opens a namespace below packet rules, for traffic that they do not see.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn set_interfaces(&self, netns: &Netns, state: Gate) -> Result<(), KernelError>;

    /// Subscribes to changes of a namespace's rules, routes and interfaces; called within a runtime.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn changes(&self, netns: &Netns) -> Result<Box<dyn NetnsChanges>, KernelError>;

    /// Processes of these pods that are in another network namespace than theirs, with a road of its own.
    ///
    /// # Errors
    /// When the processes cannot be listed.
    fn strays(&self, pods: &[(PodUid, Netns)]) -> Result<Vec<Stray>, KernelError>;

    /// Ends the redirection of a pod that leaves the mesh and runs on, but not of connections that the agent carries.
    ///
    /// # Errors
    /// When the kernel refuses; packet rules are then as before.
    fn release_pod(&self, netns: &Netns) -> Result<(), KernelError>;

    /// Whether the agent has connections in a pod's namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn carries(&self, netns: &Netns) -> Result<bool, KernelError>;

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
