//! Fresh mount and network namespaces for tests and the playground; for an ordinary user inside a new user namespace
//! in which the process is root. It must not know what runs in them.

use std::fmt;
use std::io;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

use crate::netns::{self, Netns};
use crate::{limits, route};

/// How the namespaces were entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// The process was root with the needed capabilities; no user namespace was made.
    Already,
    /// The process is root of a new user namespace, and an ordinary user outside of it.
    New,
}

/// Why the namespaces could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `unshare` changes the calling thread only (and refuses `CLONE_NEWUSER` in a threaded process).
    #[error("namespaces must be entered before any thread starts: {0} threads are running")]
    Threads(usize),
    /// The administrator or the sandbox forbids it.
    #[error("an ordinary user may not make namespaces here: {0}")]
    Forbidden(Reason),
    /// A system call failed.
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

/// What forbids user namespaces, as far as the kernel's settings show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// `user.max_user_namespaces` is 0 or used up.
    Limit(String),
    /// Debian's switch `kernel.unprivileged_userns_clone` is 0.
    CloneSwitch,
    /// AppArmor's `kernel.apparmor_restrict_unprivileged_userns` is on.
    AppArmor,
    /// None of the known settings; most likely the seccomp filter of a container.
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

/// Enters fresh mount and network namespaces (loopback up, mounts private), for an ordinary user inside a user
/// namespace in which the process is root. Call it first in `main`: threads that exist already stay outside.
///
/// # Errors
/// When other threads exist or namespaces are forbidden; [`Reason`] names the setting that forbids them.
pub fn enter() -> Result<Entered, Error> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 {
        return Err(Error::Threads(threads));
    }
    let namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
    let entered = if geteuid().is_root() && limits::has_sys_admin() && limits::has_net_admin() {
        unshare(namespaces).map_err(step("unshare mount and network namespaces"))?;
        Entered::Already
    } else {
        become_root(namespaces)?;
        Entered::New
    };
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(step("make mounts private"))?;
    netns::forget_current();
    route::set_up(&Netns::current()?, "lo")?;
    Ok(entered)
}

fn become_root(namespaces: CloneFlags) -> Result<(), Error> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(namespaces | CloneFlags::CLONE_NEWUSER).map_err(|errno| Error::Forbidden(reason(errno)))?;
    let write = |path: &str, text: String| std::fs::write(path, text);
    // The kernel lets an unprivileged process write gid_map only after setgroups is denied.
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
    fn the_setting_that_forbids_namespaces_is_named() {
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
