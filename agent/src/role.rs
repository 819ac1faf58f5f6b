//! The roles of the binary. Each builds its parts, wires them, runs until it is asked to stop, and drains.

pub(crate) mod agent;
pub(crate) mod gateway;
mod handover;
pub(crate) mod http;
pub(crate) mod install;
pub(crate) mod node;
mod shutdown;

/// Why a role ended other than by a graceful stop.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// A system call failed at start.
    #[error("{what}: {cause}")]
    Os {
        /// What was attempted.
        what: String,
        /// Why it failed.
        cause: std::io::Error,
    },
    /// A kernel operation at the start failed.
    #[error(transparent)]
    Kernel(#[from] isthmus_sys::Error),
    /// The settings of a control plane client can never work.
    #[error("control plane: {0}")]
    Control(#[from] isthmus_control::channel::ConfigError),
    /// The API server cannot be reached as configured.
    #[error("API server: {0}")]
    ApiServer(#[from] isthmus_node::ConnectError),
    /// The host's namespaces or kernel interfaces cannot be used.
    #[error("node: {0}")]
    NodeKernel(#[from] isthmus_node::kernel::KernelError),
    /// The node role did not start.
    #[error("node: {0}")]
    Node(#[from] isthmus_node::StartError),
    /// The log socket for the plugin, or the watch of the host's folders, does not start.
    #[error("installer: {0}")]
    Install(std::io::Error),
    /// The node role ended although it was not asked to.
    #[error("node: the role ended without a request to stop")]
    NodeEnded,
}

impl RunError {
    fn os(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |cause| Self::Os { what, cause }
    }
}
