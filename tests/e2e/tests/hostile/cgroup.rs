//! A cgroup with a limit of memory, of whichever version the machine has.

use std::fs;
use std::path::{Path, PathBuf};

/// Removed when dropped; a killed test leaves an empty group behind.
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    /// A group below that of this process with `limit` bytes, and the process in it. `None` when there can be none: for an
    /// ordinary user, or where the hierarchy is read-only.
    pub(crate) fn with(pid: u32, limit: u64) -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let (root, file) = match controllers {
                "" => ("/sys/fs/cgroup", "memory.max"),
                "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
                _ => return None,
            };
            // Process ids are those of the test's own namespace, and another test may have the same.
            let name = format!("isthmus-hostile-{:016x}", fastrand::u64(..));
            let group = Self(Path::new(root).join(path.trim_start_matches('/')).join(name));
            fs::create_dir(&group.0).ok()?;
            fs::write(group.0.join(file), limit.to_string()).ok()?;
            fs::write(group.0.join("cgroup.procs"), pid.to_string()).ok()?;
            Some(group)
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Fails while the agent is still exiting.
        for _ in 0..50 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}
