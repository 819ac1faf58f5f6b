//! Keeping a process's memory from being dumped.

use nix::sys::prctl;

/// While it lives, the process leaves no core file, and processes without privileges can neither trace it nor read its
/// memory (`PR_SET_DUMPABLE`).
#[derive(Debug)]
pub struct NotDumpable(());

impl NotDumpable {
    /// Takes effect at once; `None` where the process could not be dumped before.
    #[must_use]
    pub fn begin() -> Option<Self> {
        // Neither call fails with these arguments.
        if !prctl::get_dumpable().unwrap_or(false) {
            return None;
        }
        let _ = prctl::set_dumpable(false);
        Some(Self(()))
    }
}

impl Drop for NotDumpable {
    fn drop(&mut self) {
        let _ = prctl::set_dumpable(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_not_dumpable_until_the_guard_is_dropped() {
        let guard = NotDumpable::begin().unwrap();
        assert!(!prctl::get_dumpable().unwrap());
        assert!(NotDumpable::begin().is_none(), "the first guard ends it");
        assert!(!prctl::get_dumpable().unwrap());
        drop(guard);
        assert!(prctl::get_dumpable().unwrap());
    }
}
