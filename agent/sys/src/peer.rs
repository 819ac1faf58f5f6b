//! Who is at the other end of a Unix socket, by the kernel's word.

use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::Error;

/// Why a peer is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum UntrustedPeer {
    /// It runs as somebody else.
    #[error("the peer is user {found}, not {expected}")]
    User {
        /// The peer's user.
        found: u32,
        /// Ours.
        expected: u32,
    },
    /// It is a process of a namespace below ours: of a container that this process can see, as one with the host's PIDs
    /// sees every pod's.
    #[error("the peer is process {0} of a PID namespace below this one")]
    Namespace(i32),
    /// The kernel does not say.
    #[error(transparent)]
    Kernel(#[from] Error),
}

/// Accepts a peer that runs as the same user, in the same PID namespace or in one that is not visible from here: two pods
/// of a node do not see each other's processes, so that the peer's process has no number here.
///
/// # Errors
/// When the peer is another user, or in a PID namespace below this one.
pub fn check(socket: &impl AsFd) -> Result<(), UntrustedPeer> {
    let peer = getsockopt(socket, PeerCredentials).map_err(Error::on("getsockopt", "SO_PEERCRED"))?;
    let expected = nix::unistd::geteuid().as_raw();
    if peer.uid() != expected {
        return Err(UntrustedPeer::User { found: peer.uid(), expected });
    }
    let depth = |process: &str| {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        nested(&status)
    };
    // The numbers of a process, from the namespace of this procfs on down to its own. Without a procfs of our namespace a
    // number means nothing, and the user decides alone.
    let below = peer.pid() > 0
        && depth("self") == Some(1)
        && depth(&peer.pid().to_string()).is_some_and(|depth| depth > 1);
    if below { Err(UntrustedPeer::Namespace(peer.pid())) } else { Ok(()) }
}

fn nested(status: &str) -> Option<usize> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    Some(line.split_whitespace().count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_process_of_the_same_user_and_namespace_is_trusted() {
        let (near, _far) = UnixStream::pair().unwrap();
        check(&near).unwrap();
    }

    #[test]
    fn a_process_below_has_several_numbers() {
        assert_eq!(nested("Name:\tx\nNSpid:\t4711\n"), Some(1));
        assert_eq!(nested("NSpid:\t4711\t1\n"), Some(2));
        assert_eq!(nested("Name:\tx\n"), None);
    }
}
