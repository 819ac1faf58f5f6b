//! Labels with their hash: those of one connection are looked up in several families, and hashing their texts costs more
//! than the lookup.

use std::borrow::Borrow;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock};

/// One for all families of the process. Keyed: peers choose some of the labels.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Labels to be looked up in any number of families.
#[derive(Debug)]
pub struct Hashed<'a, L> {
    labels: &'a L,
    hash: LabelHash,
}

/// The hash of some labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelHash(u64);

/// Labels of a series. Behind an `Arc`, so that a scrape need not copy them.
pub(super) struct Key<L> {
    hash: LabelHash,
    pub(super) labels: Arc<L>,
}

/// What labels are looked up by: of a series, or of a caller who has no `Arc` of them.
pub(super) trait Lookup<L> {
    fn labels(&self) -> &L;
    fn hash(&self) -> LabelHash;
}

/// Passes on the one number that is written: it is a hash already.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Unhashed(u64);

// === impl Hashed ===

impl<'a, L: Hash> Hashed<'a, L> {
    /// Hashes labels.
    #[must_use]
    pub fn new(labels: &'a L) -> Self {
        Self { labels, hash: LabelHash(HASHER.hash_one(labels)) }
    }

    /// Labels that were hashed before and have not changed since.
    #[must_use]
    pub fn again(labels: &'a L, hash: LabelHash) -> Self {
        debug_assert_eq!(Self::new(labels).hash, hash, "other labels than those that were hashed");
        Self { labels, hash }
    }
}

impl<'a, L> Hashed<'a, L> {
    /// The hash, for [`Hashed::again`].
    #[must_use]
    pub fn hash(&self) -> LabelHash {
        self.hash
    }

    /// The labels.
    #[must_use]
    pub fn labels(&self) -> &'a L {
        self.labels
    }
}

impl<L> Clone for Hashed<'_, L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L> Copy for Hashed<'_, L> {}

impl<L> Lookup<L> for Hashed<'_, L> {
    fn labels(&self) -> &L {
        self.labels
    }

    fn hash(&self) -> LabelHash {
        self.hash
    }
}

// === impl LabelHash ===

impl LabelHash {
    /// One of `count` shards. By other bits than those by which a hash map chooses.
    pub(super) fn shard(self, count: usize) -> usize {
        usize::from(self.0.to_le_bytes()[4]) % count
    }
}

// === impl Key ===

impl<L: Clone> Key<L> {
    pub(super) fn new(labels: Hashed<'_, L>) -> Self {
        Self { hash: labels.hash, labels: Arc::new(labels.labels.clone()) }
    }
}

impl<L> Lookup<L> for Key<L> {
    fn labels(&self) -> &L {
        &self.labels
    }

    fn hash(&self) -> LabelHash {
        self.hash
    }
}

impl<'a, L: 'a> Borrow<dyn Lookup<L> + 'a> for Key<L> {
    fn borrow(&self) -> &(dyn Lookup<L> + 'a) {
        self
    }
}

impl<L: Eq> PartialEq for Key<L> {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.labels == other.labels
    }
}

impl<L: Eq> Eq for Key<L> {}

impl<L> Hash for Key<L> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash.0);
    }
}

// === impl Lookup ===

impl<L: Eq> PartialEq for dyn Lookup<L> + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.hash() == other.hash() && self.labels() == other.labels()
    }
}

impl<L: Eq> Eq for dyn Lookup<L> + '_ {}

impl<L> Hash for dyn Lookup<L> + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(Lookup::hash(self).0);
    }
}

// === impl Unhashed ===

impl Hasher for Unhashed {
    fn write(&mut self, bytes: &[u8]) {
        // Not called: keys write one number.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
