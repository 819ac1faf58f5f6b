//! Why an enrolment fails. Every text ends up in a pod's events (through the CNI plugin) or in the node role's log.

use std::net::IpAddr;

use crate::enroller::annotation::AnnotationError;
use crate::kernel::KernelError;
use crate::zds::AgentError;

/// Why a pod is not enrolled, by the step that failed.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The kernel refused the rules, or the path is not a pod's network namespace.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A running pod's network namespace was not found: its processes are not visible in the host's `/proc` and no
    /// file of the container runtime has its address.
    #[error("no network namespace owns its address {0:?} (searched HOST_PROC and CNI_NETNS_DIR)")]
    NoNetns(Vec<IpAddr>),
    /// The CNI plugin reported no address. An earlier plugin of the chain made none.
    #[error("the CNI event names no address")]
    NoAddress,
    /// The agent does not serve the pod.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The pod's annotation could not be written.
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
}
