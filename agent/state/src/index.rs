//! Persistent maps: a change copies the path to the entry and shares the rest with older snapshots.

use std::borrow::Borrow;
use std::hash::{BuildHasherDefault, Hash};

use rustc_hash::FxHasher;
use smallvec::{SmallVec, smallvec};

/// A persistent hash map. Keys come from the control plane, which is trusted, so a fast hash without a secret is enough.
pub(crate) type Map<K, V> = rpds::HashTrieMapSync<K, V, BuildHasherDefault<FxHasher>>;

/// A persistent map of keys that have one value, or rarely a few, in order of arrival.
#[derive(Clone, Debug)]
pub(crate) struct Multi<K: Eq + Hash, V>(Map<K, SmallVec<[V; 1]>>);

impl<K: Eq + Hash, V> Default for Multi<K, V> {
    fn default() -> Self {
        Self(Map::default())
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Multi<K, V> {
    /// The values of a key.
    pub(crate) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> &[V]
    where
        K: Borrow<Q>,
    {
        self.0.get(key).map_or(&[], SmallVec::as_slice)
    }

    /// Replaces the value for which `same` holds, in its place, or adds one at the end.
    pub(crate) fn insert(&mut self, key: &K, value: V, same: impl Fn(&V) -> bool) {
        let Some(values) = self.0.get_mut(key) else {
            self.0.insert_mut(key.clone(), smallvec![value]);
            return;
        };
        match values.iter_mut().find(|stored| same(stored)) {
            Some(stored) => *stored = value,
            None => values.push(value),
        }
    }

    /// Removes the value for which `same` holds.
    pub(crate) fn remove(&mut self, key: &K, same: impl Fn(&V) -> bool) {
        let Some(values) = self.0.get_mut(key) else { return };
        values.retain(|stored| !same(stored));
        if values.is_empty() {
            self.0.remove_mut(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_position_and_older_versions_their_values() {
        let mut index = Multi::<u8, &str>::default();
        for value in ["a", "b", "c"] {
            index.insert(&1, value, |held| *held == value);
        }
        let old = index.clone();
        index.insert(&1, "B", |held| *held == "b");
        index.remove(&1, |held| *held == "a");
        index.remove(&2, |_| true);
        assert_eq!(index.get(&1), ["B", "c"]);
        assert_eq!(old.get(&1), ["a", "b", "c"]);
        index.remove(&1, |_| true);
        assert!(index.get(&1).is_empty());
    }
}
