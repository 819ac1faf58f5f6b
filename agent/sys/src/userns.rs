//! Becoming root of a small world: a user namespace of one's own for an ordinary user, the same work directly for root.

use std::fmt;
use std::io;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

use crate::netns::{self, Netns};
use crate::{limits, route};

/// How the world was entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// The process was root with the needed capabilities; no user namespace was made.
    Already,
    /// The process is root of a new user namespace, and nobody outside of it.
    New,
}

/// Why no world could be entered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Namespaces of a process can be changed only while it has one thread.
    #[error("namespaces must be entered before any thread starts: {0} threads run")]
    Threads(usize),
    /// The administrator or the sandbox forbids it.
    #[error("an ordinary user may not make namespaces here: {0}")]
    Forbidden(Reason),
    /// A step failed that should not.
    #[error("{step}: {cause}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The new network namespace could not be used.
    #[error(transparent)]
    Network(#[from] crate::Error),
}

/// What forbids user namespaces, as far as it can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// `user.max_user_namespaces` is 0 or used up.
    Limit(String),
    /// Debian's switch `kernel.unprivileged_userns_clone` is 0.
    CloneSwitch,
    /// AppArmor's `kernel.apparmor_restrict_unprivileged_userns` is on.
    AppArmor,
    /// Nothing known; most likely the seccomp filter of a container.
    Unknown(Errno),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit(max) => {
                write!(f, "user.max_user_namespaces is {max} (raise it: sysctl user.max_user_namespaces=10000)")
            }
            Self::CloneSwitch => {
                f.write_str("kernel.unprivileged_userns_clone is 0 (sysctl kernel.unprivileged_userns_clone=1)")
            }
            Self::AppArmor => f.write_str(
                "AppArmor restricts them (sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run as root)",
            ),
            Self::Unknown(errno) => {
                write!(f, "{errno}; a container's seccomp filter may forbid it, run outside of it or as root")
            }
        }
    }
}

/// Enters a world of its own: fresh mount and network namespaces (loopback up, mounts private), and for an ordinary
/// user a user namespace in which the process is root. Call it first thing in `main`: everything a thread started
/// earlier does stays outside.
///
/// # Errors
/// When a thread runs already or namespaces are forbidden; [`Reason`] says what forbids them and what helps.
pub fn enter() -> Result<Entered, Error> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 {
        return Err(Error::Threads(threads));
    }
    let world = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
    let entered = if geteuid().is_root() && limits::has_sys_admin() && limits::has_net_admin() {
        unshare(world).map_err(step("unshare mount and network namespaces"))?;
        Entered::Already
    } else {
        become_root(world)?;
        Entered::New
    };
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(step("make mounts private"))?;
    netns::forget_current();
    route::set_up(&Netns::current()?, "lo")?;
    Ok(entered)
}

fn become_root(world: CloneFlags) -> Result<(), Error> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(world | CloneFlags::CLONE_NEWUSER).map_err(|errno| Error::Forbidden(reason(errno)))?;
    let write = |path: &str, text: String| std::fs::write(path, text);
    write("/proc/self/setgroups", "deny".to_owned())
        .and_then(|()| write("/proc/self/uid_map", format!("0 {uid} 1")))
        .and_then(|()| write("/proc/self/gid_map", format!("0 {gid} 1")))
        .map_err(|e| Error::Forbidden(reason(Errno::from_raw(e.raw_os_error().unwrap_or_default()))))
}

fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Error {
    move |cause| Error::Step { step, cause: cause.into() }
}

fn reason(errno: Errno) -> Reason {
    let setting = |key: &str| {
        std::fs::read_to_string(format!("/proc/sys/{key}")).ok().map(|text| text.trim().to_owned())
    };
    explain(errno, setting)
}

fn explain(errno: Errno, setting: impl Fn(&str) -> Option<String>) -> Reason {
    if let Some(max) = setting("user/max_user_namespaces").filter(|max| errno == Errno::ENOSPC || max == "0")
    {
        return Reason::Limit(max);
    }
    if setting("kernel/unprivileged_userns_clone").as_deref() == Some("0") {
        return Reason::CloneSwitch;
    }
    match setting("kernel/apparmor_restrict_unprivileged_userns").as_deref() {
        None | Some("0") => Reason::Unknown(errno),
        Some(_) => Reason::AppArmor,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threaded_process_is_refused() {
        // The test harness runs this on a thread of its own.
        assert!(matches!(enter(), Err(Error::Threads(n)) if n > 1));
    }

    #[test]
    fn what_forbids_namespaces_is_named() {
        let only = |key: &'static str, value: &'static str| {
            move |asked: &str| (asked == key).then(|| value.to_owned())
        };
        assert_eq!(
            explain(Errno::ENOSPC, only("user/max_user_namespaces", "0")),
            Reason::Limit("0".to_owned())
        );
        assert_eq!(explain(Errno::EPERM, only("kernel/unprivileged_userns_clone", "0")), Reason::CloneSwitch);
        let apparmor = explain(Errno::EACCES, only("kernel/apparmor_restrict_unprivileged_userns", "1"));
        assert_eq!(apparmor, Reason::AppArmor);
        assert_eq!(
            explain(Errno::EPERM, only("user/max_user_namespaces", "96343")),
            Reason::Unknown(Errno::EPERM)
        );
        assert!(Error::Forbidden(apparmor).to_string().contains("apparmor_restrict_unprivileged_userns=0"));
    }
}
