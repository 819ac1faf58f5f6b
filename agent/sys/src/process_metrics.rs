//! Figures of this process that the kernel keeps.

use nix::sys::resource::{Resource, getrlimit};

/// How many descriptors are open; `None` without `/proc`.
#[must_use]
pub fn open_fds() -> Option<u64> {
    let listed = std::fs::read_dir("/proc/self/fd").ok()?.count();
    // One of those listed is the directory's own.
    u64::try_from(listed.saturating_sub(1)).ok()
}

/// How many descriptors may be open.
#[must_use]
pub fn max_fds() -> Option<u64> {
    getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft)
}

/// Resident memory in bytes; `None` without `/proc`.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_opened_file_is_counted() {
        let files: Vec<_> = (0..64).map(|_| std::fs::File::open("/proc/self/status").unwrap()).collect();
        assert!(super::open_fds().unwrap() >= 64);
        assert!(super::max_fds().unwrap() >= 64);
        assert!(super::resident_bytes().unwrap() > 0);
        drop(files);
    }
}
