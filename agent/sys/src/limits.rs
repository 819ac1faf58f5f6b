//! Resource limits and capabilities of this process.

use std::io;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::Error;

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

/// Raises the soft limit of open files to the hard limit and returns it. Every proxied connection costs two
/// descriptors, and container runtimes set a low soft limit for programs that use `select`.
///
/// # Errors
/// When the kernel refuses.
pub fn raise_nofile() -> Result<u64, Error> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(Error::on("getrlimit", "NOFILE"))?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .map_err(Error::on("setrlimit", format!("NOFILE={hard}")))?;
    }
    Ok(hard)
}

/// Hard limit of open files, to which [`raise_nofile`] raises the soft one; `None` when the kernel does not say.
#[must_use]
pub fn max_nofile() -> Option<u64> {
    getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_, hard)| hard)
}

/// Whether a system call failed because the process or the machine has no descriptor left.
#[must_use]
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    [Errno::EMFILE, Errno::ENFILE].into_iter().any(|errno| error.raw_os_error() == Some(errno as i32))
}

/// Whether the calling thread has `CAP_NET_ADMIN`: it may write rules and routes, and make transparent sockets.
#[must_use]
pub fn has_net_admin() -> bool {
    has(CAP_NET_ADMIN)
}

/// Whether the calling thread has `CAP_SYS_ADMIN`: it may make and enter namespaces without a new user namespace.
#[must_use]
pub fn has_sys_admin() -> bool {
    has(CAP_SYS_ADMIN)
}

fn has(capability: u32) -> bool {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    effective(&status).is_some_and(|set| set & (1 << capability) != 0)
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_effective_set() {
        let set = effective("CapPrm:\t0000000000000000\nCapEff:\t0000000000201000\n").unwrap();
        assert_eq!(set, 1 << CAP_NET_ADMIN | 1 << CAP_SYS_ADMIN);
        assert_eq!(effective("Name:\tx\n"), None);
    }

    #[test]
    fn the_soft_limit_reaches_the_hard_one() {
        let limit = raise_nofile().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (limit, limit));
    }
}
