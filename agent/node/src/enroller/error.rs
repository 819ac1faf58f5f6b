//! Why an enrolment fails. Every text ends up in a pod's events (through the CNI plugin) or in the node role's log.

use std::net::IpAddr;

use crate::capture::CaptureError;
use crate::enroller::annotation::AnnotationError;
use crate::kernel::KernelError;
use crate::zds::AgentError;

/// Why a pod is not enrolled, by the step that failed.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The kernel refused the rules, or the path is not a pod's network namespace.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Nothing proves which network namespace is a running pod's: no process of its cgroup is visible in the host's
    /// `/proc` in a namespace that has its address, and CNI ADD recorded none.
    #[error(
        "nothing proves which network namespace is its own, with address {0:?} (searched HOST_PROC for its processes)"
    )]
    NoNetns(Vec<IpAddr>),
    /// The CNI plugin reported no address. An earlier plugin of the chain made none.
    #[error("the CNI event names no address")]
    NoAddress,
    /// It is not proved that its traffic is captured.
    #[error("it is not captured: {0}")]
    Capture(#[from] CaptureError),
    /// The agent does not serve the pod.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The pod's annotation could not be written.
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
}
