//! Who has how many series of a family. Knows sources by a hash only.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Number of series by source.
#[derive(Default)]
pub(super) struct Shares(Mutex<HashMap<u64, usize>>);

impl fmt::Debug for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shares").finish_non_exhaustive()
    }
}

impl Shares {
    /// The series that `find` finds, or the one that `create` makes if the source has not used up its share: half of
    /// what is `free`, so that some of it is left for others however many take theirs.
    pub(super) fn take<M>(
        &self,
        source: u64,
        find: impl FnOnce() -> Option<M>,
        free: impl FnOnce() -> usize,
        create: impl FnOnce() -> Option<M>,
    ) -> Option<M> {
        // Held while the series is created: two threads that create the same one must not count it twice.
        let mut taken = self.lock();
        if let Some(found) = find() {
            return Some(found);
        }
        if taken.get(&source).copied().unwrap_or_default() >= free().div_ceil(2) {
            return None;
        }
        let made = create()?;
        *taken.entry(source).or_default() += 1;
        Some(made)
    }

    /// A series of this source ended.
    pub(super) fn give_back(&self, source: u64) {
        let mut taken = self.lock();
        match taken.get_mut(&source) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.remove(&source)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
