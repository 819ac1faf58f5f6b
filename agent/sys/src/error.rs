//! The error of system calls and netlink requests: the operation, its object and the kernel's answer.

use std::io;

/// A system call or netlink request that failed. It displays as `operation object: reason`, complete for a log line.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {object}: {cause}")]
pub struct Error {
    operation: &'static str,
    object: String,
    cause: io::Error,
}

impl Error {
    pub(crate) fn new(operation: &'static str, object: impl ToString, cause: impl Into<io::Error>) -> Self {
        Self { operation, object: object.to_string(), cause: cause.into() }
    }

    /// For `map_err`.
    pub(crate) fn on<E: Into<io::Error>>(
        operation: &'static str,
        object: impl ToString,
    ) -> impl FnOnce(E) -> Self {
        move |cause| Self::new(operation, object, cause)
    }

    /// The kernel's answer.
    #[must_use]
    pub fn cause(&self) -> &io::Error {
        &self.cause
    }

    /// The error number, when the kernel gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.cause.raw_os_error()
    }

    pub(crate) fn is(&self, errno: nix::errno::Errno) -> bool {
        self.errno() == Some(errno as i32)
    }
}
