//! Resource usage of this process, from `/proc`.

use nix::sys::resource::{Resource, getrlimit};

/// Open file descriptors; `None` without `/proc`.
#[must_use]
pub fn open_fds() -> Option<u64> {
    let listed = std::fs::read_dir("/proc/self/fd").ok()?.count();
    // One of the entries is the descriptor of the directory that is being read.
    u64::try_from(listed.saturating_sub(1)).ok()
}

/// Soft limit of open file descriptors.
#[must_use]
pub fn max_fds() -> Option<u64> {
    getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft)
}

/// Resident set size in bytes; `None` without `/proc`.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

/// Resident memory in bytes that is backed by no file: heap and stacks; `None` without `/proc`.
#[must_use]
pub fn anonymous_bytes() -> Option<u64> {
    status_bytes("RssAnon:")
}

fn status_bytes(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn open_files_are_counted() {
        let files: Vec<_> = (0..64).map(|_| std::fs::File::open("/proc/self/status").unwrap()).collect();
        assert!(super::open_fds().unwrap() >= 64);
        assert!(super::max_fds().unwrap() >= 64);
        assert!(super::resident_bytes().unwrap() > 0);
        drop(files);
    }
}
