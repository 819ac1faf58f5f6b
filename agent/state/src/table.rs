//! A persistent hash table of values that contain their own keys. A value costs a slot of 16 bytes and little more, where
//! a persistent map would box each key beside it: in a mesh of 100,000 workloads the indices would outweigh the
//! workloads.
//!
//! It is a trie over the bits of a hash whose leaves hold up to [`LEAF`] slots. A change copies one leaf and the path to
//! it, as far as an older snapshot shares them.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use rustc_hash::FxHasher;

/// Children of a branch: as many as there are values of [`BITS`] bits.
const WIDTH: usize = 1 << BITS;
/// Bits of the hash that one level looks at.
const BITS: u32 = 4;
/// Most slots of a leaf, unless the bits of the hash are used up.
const LEAF: usize = 32;

/// The hash under which a value is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Key(u32);

/// A persistent set of values, each found by one or more keys. Values of one key keep the order of their arrival.
#[derive(Clone, Debug)]
pub(crate) struct Table<V> {
    root: Node<V>,
    len: usize,
}

#[derive(Debug)]
enum Node<V> {
    Empty,
    Leaf(Arc<Vec<Slot<V>>>),
    Branch(Arc<[Self; WIDTH]>),
}

#[derive(Clone, Debug)]
struct Slot<V> {
    key: Key,
    value: V,
}

/// The values of a table.
#[derive(Debug)]
pub(crate) struct Iter<'a, V> {
    /// The children not yet visited of each node on the path to the leaf.
    open: Vec<std::slice::Iter<'a, Node<V>>>,
    leaf: std::slice::Iter<'a, Slot<V>>,
    left: usize,
}

// === impl Key ===

impl Key {
    /// The key of a hashable value.
    pub(crate) fn of(what: &(impl Hash + ?Sized)) -> Self {
        let mut hasher = FxHasher::default();
        what.hash(&mut hasher);
        let [a, b, c, d, e, f, g, h] = hasher.finish().to_be_bytes();
        Self(u32::from_be_bytes([a, b, c, d]) ^ u32::from_be_bytes([e, f, g, h]))
    }

    /// The child at a level.
    fn child(self, level: u32) -> usize {
        (self.0.rotate_left((level + 1) * BITS) as usize) % WIDTH
    }
}

// === impl Node ===

impl<V> Clone for Node<V> {
    fn clone(&self) -> Self {
        match self {
            Self::Empty => Self::Empty,
            Self::Leaf(slots) => Self::Leaf(Arc::clone(slots)),
            Self::Branch(children) => Self::Branch(Arc::clone(children)),
        }
    }
}

impl<V: Clone> Node<V> {
    fn branch() -> Self {
        Self::Branch(Arc::new([const { Self::Empty }; WIDTH]))
    }

    fn push(&mut self, level: u32, slot: Slot<V>) {
        match self {
            Self::Empty => *self = Self::Leaf(Arc::new(vec![slot])),
            Self::Branch(children) => {
                Arc::make_mut(children)[slot.key.child(level)].push(level + 1, slot);
            }
            Self::Leaf(slots) if slots.len() < LEAF || level * BITS >= u32::BITS => {
                let slots = Arc::make_mut(slots);
                // Exactly one more: most leaves never get another.
                slots.reserve_exact(1);
                slots.push(slot);
            }
            Self::Leaf(slots) => {
                let slots = std::mem::take(slots);
                *self = Self::branch();
                for stored in Arc::unwrap_or_clone(slots) {
                    self.push(level, stored);
                }
                self.push(level, slot);
            }
        }
    }

    /// Removes the first slot of this key and this value; whether there was one.
    fn remove(&mut self, level: u32, key: Key, is: &impl Fn(&V) -> bool) -> bool {
        match self {
            Self::Empty => false,
            // Empty branches stay: a mesh grows back to the size that it had.
            Self::Branch(children) => {
                let stored =
                    children[key.child(level)].find(level + 1, key).iter().any(|slot| slot.is(key, is));
                stored && Arc::make_mut(children)[key.child(level)].remove(level + 1, key, is)
            }
            Self::Leaf(slots) => {
                let Some(at) = slots.iter().position(|slot| slot.is(key, is)) else { return false };
                if slots.len() == 1 {
                    *self = Self::Empty;
                } else {
                    let slots = Arc::make_mut(slots);
                    slots.remove(at);
                    slots.shrink_to_fit();
                }
                true
            }
        }
    }
}

impl<V> Node<V> {
    /// The leaf where this key is, if it is anywhere.
    fn find(&self, mut level: u32, key: Key) -> &[Slot<V>] {
        let mut node = self;
        loop {
            match node {
                Self::Empty => return &[],
                Self::Leaf(slots) => return slots,
                Self::Branch(children) => (node, level) = (&children[key.child(level)], level + 1),
            }
        }
    }
}

// === impl Slot ===

impl<V> Slot<V> {
    fn is(&self, key: Key, is: impl Fn(&V) -> bool) -> bool {
        self.key == key && is(&self.value)
    }
}

// === impl Table ===

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self { root: Node::Empty, len: 0 }
    }
}

impl<V> Table<V> {
    /// Number of slots.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Values of this key, and rarely some of another key with the same hash: the caller must compare.
    pub(crate) fn get(&self, key: Key) -> impl DoubleEndedIterator<Item = &V> {
        let slots = self.root.find(0, key).iter();
        slots.filter(move |slot| slot.key == key).map(|slot| &slot.value)
    }

    /// Every value, once for each of its keys, in no particular order.
    pub(crate) fn iter(&self) -> Iter<'_, V> {
        Iter { open: vec![std::slice::from_ref(&self.root).iter()], leaf: [].iter(), left: self.len }
    }
}

// === impl Iter ===

impl<'a, V> Iterator for Iter<'a, V> {
    type Item = &'a V;

    fn next(&mut self) -> Option<&'a V> {
        loop {
            if let Some(slot) = self.leaf.next() {
                self.left -= 1;
                return Some(&slot.value);
            }
            match self.open.last_mut()?.next() {
                None => drop(self.open.pop()),
                Some(Node::Empty) => {}
                Some(Node::Leaf(slots)) => self.leaf = slots.iter(),
                Some(Node::Branch(children)) => self.open.push(children.iter()),
            }
        }
    }

    /// Exact, so that collecting allocates once.
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<V: Clone> Table<V> {
    /// Adds a value that is not stored under this key yet.
    pub(crate) fn insert(&mut self, key: Key, value: V) {
        self.root.push(0, Slot { key, value });
        self.len += 1;
    }

    /// Removes the value of this key for which `is` holds.
    pub(crate) fn remove(&mut self, key: Key, is: impl Fn(&V) -> bool) {
        self.len -= usize::from(self.root.remove(0, key, &is));
    }
}

#[cfg(test)]
mod tests;
