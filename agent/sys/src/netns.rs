//! Network namespaces as values: an open file that keeps the namespace alive, and the two ways of running code inside
//! one. It must not know what is run.

use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::fstat;
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use crate::Error;

mod cookie;

const HERE: &str = "/proc/thread-self/ns/net";

thread_local! {
    /// Cache of the namespace that this thread is in. [`Entered`] keeps it up to date, so that entering another one
    /// costs two `setns` and no `open`.
    static CURRENT: RefCell<Option<Netns>> = const { RefCell::new(None) };
}

/// Identifies a namespace for as long as it exists; the kernel reuses inode numbers afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsId {
    /// Device number of nsfs.
    pub dev: u64,
    /// Inode number, as in `net:[…]`.
    pub ino: u64,
}

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.ino)
    }
}

/// A network namespace, kept alive by an open descriptor. Clones share it.
#[derive(Debug, Clone)]
pub struct Netns(Arc<OpenNetns>);

#[derive(Debug)]
struct OpenNetns {
    fd: OwnedFd,
    id: NetnsId,
}

impl Netns {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> Result<Self, Error> {
        if let Some(known) = CURRENT.with_borrow(Clone::clone) {
            return Ok(known);
        }
        let here = Self::identified(open(Path::new(HERE))?, HERE)?;
        CURRENT.set(Some(here.clone()));
        Ok(here)
    }

    /// Opens a namespace file, for example the path that a container runtime hands to a CNI plugin.
    ///
    /// # Errors
    /// When it cannot be opened or is not a *network* namespace.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let shown = path.to_string_lossy();
        let netns = Self::identified(open(path)?, &shown)?;
        netns.must_be_net(&shown)?;
        Ok(netns)
    }

    /// Takes over a descriptor that came over a socket.
    ///
    /// # Errors
    /// When it is not a network namespace.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        const PASSED: &str = "passed descriptor";
        let netns = Self::identified(fd, PASSED)?;
        netns.must_be_net(PASSED)?;
        Ok(netns)
    }

    /// A new namespace with all interfaces down; callers use [`Netns::create`](Self::create), which is where links are.
    pub(crate) fn create_down() -> Result<Self, Error> {
        on_thread("create-netns", || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(Error::on("unshare", "a network namespace"))?;
            Self::identified(open(Path::new(HERE))?, HERE)
        })?
    }

    /// The namespace's identity.
    #[must_use]
    pub fn id(&self) -> NetnsId {
        self.0.id
    }

    /// The open namespace file, for passing it over a socket.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }

    /// Runs `f` inside the namespace on the calling thread and returns to the thread's own: about 3 µs. `f` must
    /// neither block nor yield to a scheduler. The process aborts when the return fails: a runtime's thread in the
    /// wrong namespace would serve one pod's traffic in another.
    ///
    /// # Errors
    /// When the namespace cannot be entered (it requires `CAP_SYS_ADMIN`); `f` has not run then.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> Result<T, Error> {
        let _entered = Entered::new(self)?;
        Ok(f())
    }

    /// Runs `f` inside the namespace on a thread of its own, for slow work.
    ///
    /// # Errors
    /// When the thread cannot be started, the namespace cannot be entered, or `f` panicked.
    pub fn run_thread<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, Error> {
        // A new thread starts in its creator's namespace. Entering that one again changes nothing but requires
        // CAP_SYS_ADMIN.
        let already_inside = Self::current()?.id() == self.id();
        on_thread("in-netns", || {
            if !already_inside {
                setns(&self.0.fd, CloneFlags::CLONE_NEWNET).map_err(Error::on("enter", self.id()))?;
            }
            CURRENT.set(Some(self.clone()));
            Ok(f())
        })?
    }

    fn identified(fd: OwnedFd, object: &str) -> Result<Self, Error> {
        let kind = fstatfs(&fd).map_err(|e| Error::new("fstatfs", object, e))?.filesystem_type();
        if kind != NSFS_MAGIC {
            let cause = io::Error::new(io::ErrorKind::InvalidInput, "is not a namespace file");
            return Err(Error::new("open network namespace", object, cause));
        }
        let stat = fstat(&fd).map_err(|e| Error::new("fstat", object, e))?;
        Ok(Self(Arc::new(OpenNetns { fd, id: NetnsId { dev: stat.st_dev, ino: stat.st_ino } })))
    }

    /// Tells a network namespace from one of another kind: `setns` compares the kind before it checks permissions and
    /// fails with EINVAL. Tried on a thread that ends right after, because it may succeed.
    fn must_be_net(&self, object: &str) -> Result<(), Error> {
        let tried = on_thread("check-netns", || setns(&self.0.fd, CloneFlags::CLONE_NEWNET))?;
        if tried == Err(Errno::EINVAL) {
            let cause =
                io::Error::new(io::ErrorKind::InvalidInput, "is a namespace of another kind than network");
            return Err(Error::new("open network namespace", object, cause));
        }
        Ok(())
    }
}

/// Invalidates the cached namespace of this thread, after an `unshare`.
pub(crate) fn forget_current() {
    CURRENT.set(None);
}

/// Guard: the calling thread is inside a namespace until this is dropped.
struct Entered {
    home: Option<Netns>,
}

impl Entered {
    fn new(target: &Netns) -> Result<Self, Error> {
        let home = Netns::current()?;
        if home.id() == target.id() {
            return Ok(Self { home: None });
        }
        setns(&target.0.fd, CloneFlags::CLONE_NEWNET).map_err(Error::on("enter", target.id()))?;
        CURRENT.set(Some(target.clone()));
        Ok(Self { home: Some(home) })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let Some(home) = self.home.take() else { return };
        if let Err(errno) = setns(&home.0.fd, CloneFlags::CLONE_NEWNET) {
            tracing::error!(netns = %home.id(), %errno, "thread cannot return to its network namespace, aborting the process");
            std::process::abort();
        }
        CURRENT.set(Some(home));
    }
}

fn open(path: &Path) -> Result<OwnedFd, Error> {
    File::open(path).map(OwnedFd::from).map_err(Error::on("open", path.display()))
}

/// Runs `f` on a thread that ends with the call, so that changes to the thread's namespaces do not outlive it.
pub(crate) fn on_thread<T: Send>(name: &'static str, f: impl FnOnce() -> T + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn_scoped(scope, f)
            .map_err(Error::on("start thread", name))?;
        thread.join().map_err(|_| Error::new("thread", name, io::Error::other("panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_namespace_can_be_entered_without_privileges() {
        let here = Netns::current().unwrap();
        assert_eq!(here.run(|| 7).unwrap(), 7);
        assert_eq!(Netns::open(Path::new(HERE)).unwrap().id(), here.id());
        assert_eq!(here.id().to_string(), std::fs::read_link(HERE).unwrap().to_string_lossy());
    }

    #[test]
    fn a_file_that_is_not_a_network_namespace_is_refused() {
        let file = Netns::open(Path::new("/proc/self/status")).unwrap_err().to_string();
        assert_eq!(file, "open network namespace /proc/self/status: is not a namespace file");
        let mount = Netns::open(Path::new("/proc/self/ns/mnt")).unwrap_err().to_string();
        assert_eq!(
            mount,
            "open network namespace /proc/self/ns/mnt: is a namespace of another kind than network"
        );
        let missing = Netns::open(Path::new("/proc/self/ns/none")).unwrap_err().to_string();
        assert!(missing.starts_with("open /proc/self/ns/none: "), "{missing}");
    }

    #[test]
    fn a_panic_in_a_helper_thread_is_an_error() {
        let error = on_thread("oops", || panic!("on purpose")).unwrap_err().to_string();
        assert_eq!(error, "thread oops: panicked");
    }
}
