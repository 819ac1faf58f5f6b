//! The three roles of the binary, each: build the parts, wire them, run until told to stop, drain.

pub(crate) mod agent;
pub(crate) mod gateway;
pub(crate) mod http;
pub(crate) mod node;
mod signal;

/// Why a role ended otherwise than by a graceful stop.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The operating system refused something at the start.
    #[error("{what}: {cause}")]
    Os {
        /// What was tried.
        what: String,
        /// Its reason.
        cause: std::io::Error,
    },
    /// A kernel operation at the start failed.
    #[error(transparent)]
    Kernel(#[from] isthmus_sys::Error),
    /// The control plane's settings can never work.
    #[error("control plane: {0}")]
    Control(#[from] isthmus_control::channel::ConfigError),
    /// The node role could not start or broke.
    #[error("node: {0}")]
    Node(String),
}

impl RunError {
    fn os(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |cause| Self::Os { what, cause }
    }
}
