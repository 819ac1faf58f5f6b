//! One copy of every text that many objects repeat. The workloads of a mesh say the same few namespaces, accounts, nodes
//! and services over and over; what they share is most of what they hold.
//!
//! It belongs to whoever reads resources, and is not shared between threads: names are made elsewhere as well, and those
//! are compared by their text like any other.

use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;

use arcstr::ArcStr;

use crate::name::{Name, NamespacedHostname};
use crate::workload::{Memberships, PortMap};

/// A pool that does not grow beyond this is never searched for what nobody uses any more.
const SMALLEST: usize = 1024;

/// Knows the texts and memberships in use.
#[derive(Debug, Default)]
pub struct Interner {
    texts: Pool<ArcStr>,
    memberships: Pool<Memberships>,
}

/// Values, each once.
#[derive(Debug)]
struct Pool<T> {
    held: HashSet<T>,
    /// How many values may be held before those are dropped that nobody else holds.
    limit: usize,
}

// === impl Interner ===

impl Interner {
    /// The name of this text.
    pub fn name<T: Name>(&mut self, text: &str) -> T {
        if text.is_empty() {
            return T::from_shared(ArcStr::new());
        }
        if let Some(held) = self.texts.held.get(text) {
            return T::from_shared(held.clone());
        }
        // A text that cannot be counted is one of the program itself.
        let unused = |text: &ArcStr| ArcStr::strong_count(text) == Some(1);
        T::from_shared(self.texts.put(ArcStr::from(text), unused))
    }

    /// These memberships.
    pub(crate) fn memberships(&mut self, services: BTreeMap<NamespacedHostname, PortMap>) -> Memberships {
        let services = Memberships::from(services);
        if let Some(held) = self.memberships.held.get(&services) {
            return held.clone();
        }
        self.memberships.put(services, Memberships::is_unshared)
    }
}

// === impl Pool ===

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { held: HashSet::default(), limit: SMALLEST }
    }
}

impl<T: Eq + Hash + Clone> Pool<T> {
    /// Adds a value that is not held. What is searched is paid for by what was added since the last search.
    fn put(&mut self, value: T, unused: impl Fn(&T) -> bool) -> T {
        if self.held.len() >= self.limit {
            self.held.retain(|held| !unused(held));
            self.held.shrink_to(self.held.len() * 2);
            self.limit = SMALLEST.max(self.held.len() * 2);
        }
        self.held.insert(value.clone());
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::{Namespace, Text};

    #[test]
    fn equal_texts_and_memberships_are_held_once() {
        let mut interner = Interner::default();
        let (namespace, text): (Namespace, Text) = (interner.name("shop"), interner.name("shop"));
        assert_eq!(namespace.as_str().as_ptr(), text.as_str().as_ptr());
        let services = || BTreeMap::from([(NamespacedHostname::parse("a/b").unwrap(), PortMap::new())]);
        let one = interner.memberships(services());
        let held = std::ptr::from_ref::<BTreeMap<_, _>>(&one);
        assert!(std::ptr::eq(held, &*interner.memberships(services())));
        assert!(!one.is_unshared());
    }

    #[test]
    fn unused_values_are_dropped() {
        let mut interner = Interner::default();
        let used: Vec<Text> = (0..SMALLEST / 2).map(|n| interner.name(&format!("used {n}"))).collect();
        for n in 0..100 * SMALLEST {
            let _: Text = interner.name(&format!("gone {n}"));
        }
        assert!(interner.texts.held.len() <= 2 * SMALLEST, "{}", interner.texts.held.len());
        assert!(used.iter().all(|text| interner.texts.held.contains(text.as_str())));
    }
}
