//! What it means that a pod's traffic is captured, and what shows that it is not. Values; it must not know how the kernel
//! is asked, or what is done about it.

use std::net::IpAddr;

use isthmus_model::PodUid;
use isthmus_rt::BoxFuture;
use isthmus_sys::bypass::Bypass;
use isthmus_sys::netns::Netns;

use crate::kernel::KernelError;
use crate::pod::CaptureConfig;

/// A pod's network namespace and what should be captured in it.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// The namespace.
    pub netns: Netns,
    /// The pod's addresses.
    pub ips: Vec<IpAddr>,
    /// What is captured.
    pub capture: CaptureConfig,
}

/// Whether a pod's traffic may leave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// What is redirected goes to the agent, all else of TCP is dropped: it is not proved that everything is redirected.
    Closed,
    /// It is proved.
    Open,
}

/// What to do with a pod whose traffic cannot be captured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Uncapturable {
    /// It does not start, or is closed.
    #[default]
    Refuse,
    /// It runs out of the mesh, and is marked.
    Mark,
}

/// Changes of a network namespace.
pub trait NetnsChanges: Send {
    /// Resolves when something has changed since the last call.
    fn changed(&mut self) -> BoxFuture<'_, ()>;
}

impl NetnsChanges for isthmus_sys::changes::Changes {
    fn changed(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(self.changed())
    }
}

/// A process of a pod in another namespace than the pod's.
#[derive(Debug, Clone)]
pub struct Stray {
    /// The pod.
    pub pod: PodUid,
    /// The process, as a folder of `/proc`.
    pub process: String,
    /// Where it is; `None` for the host's, which is never closed.
    pub netns: Option<Netns>,
}

/// A direction of a pod's traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the application.
    Outbound,
    /// To the application.
    Inbound,
}

/// Why a pod does not count as captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// A table of its packet rules, or something in one, is missing or changed.
    #[error("its packet rules are not as they were written")]
    Rules,
    /// The routing rule or the route for answers to the agent is missing.
    #[error("its routing rule or its local route is missing")]
    Routing,
    /// A canary was not led to the agent's port.
    #[error("{0} traffic is not redirected to the agent: a canary was not led to its port")]
    NotRedirected(Direction),
    /// Redirected traffic is refused: the agent does not serve the pod.
    #[error("the agent does not listen in it")]
    NotServed,
    /// The listener is not the agent's: its packets do not bear the agent's mark.
    #[error("what listens on the agent's port for {0} traffic is not the agent")]
    NotTheAgents(Direction),
    /// Packets take a road past the rules.
    #[error("{0}")]
    Bypass(Bypass),
    /// The runtime has its own network stack.
    #[error("none of its interfaces has its address: its runtime has a network stack of its own")]
    OwnStack,
    /// The pod's runtime class is known for a network stack of its own.
    #[error("its runtime class {0} has a network stack of its own")]
    RuntimeClass(String),
    /// A process of the pod is in a namespace that leads past the pod's.
    #[error("its process {0} is in another network namespace, which has a road of its own")]
    Stray(String),
    /// The kernel could not be asked.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl CaptureError {
    /// Whether writing the rules again cannot help: packets do not pass them.
    #[must_use]
    pub fn is_uncapturable(&self) -> bool {
        matches!(self, Self::Bypass(_) | Self::OwnStack | Self::RuntimeClass(_) | Self::Stray(_))
    }
}

impl std::fmt::Display for Direction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        })
    }
}

/// Runtime classes that are known for a network stack of their own, unless a list is configured: Kata Containers and
/// gVisor under their usual names. A trailing `*` stands for any end.
pub const OWN_STACK_CLASSES: [&str; 3] = ["kata*", "gvisor*", "runsc*"];

/// Whether a runtime class is in such a list.
#[must_use]
pub fn is_own_stack(class: &str, list: &[String]) -> bool {
    list.iter().any(|entry| match entry.strip_suffix('*') {
        Some(begin) => class.starts_with(begin),
        None => class == entry,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtime_classes_are_matched_by_their_beginning() {
        let list = OWN_STACK_CLASSES.map(str::to_owned);
        for (class, want) in
            [("kata", true), ("kata-qemu", true), ("gvisor", true), ("runc", false), ("", false)]
        {
            assert_eq!(is_own_stack(class, &list), want, "{class}");
        }
        assert!(!is_own_stack("katalog", &["kata".to_owned()]));
    }
}
