//! Interning of texts that many objects repeat: workloads have few distinct namespaces, service accounts, nodes and
//! services, and these are most of their memory.
//!
//! The interner belongs to the xDS session and is not shared between threads. Names that are created elsewhere are not
//! interned; they compare by text like all others.

use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;

use arcstr::ArcStr;

use crate::name::{Name, NamespacedHostname};
use crate::workload::{Memberships, PortMap};

/// Pools of up to this size are never searched for unused values.
const SMALLEST: usize = 1024;

/// Interns texts and memberships.
#[derive(Debug, Default)]
pub struct Interner {
    texts: Pool<ArcStr>,
    memberships: Pool<Memberships>,
}

/// Distinct values.
#[derive(Debug)]
struct Pool<T> {
    held: HashSet<T>,
    /// Size at which unused values are dropped.
    limit: usize,
}

// === impl Interner ===

impl Interner {
    /// The name with this text.
    pub fn name<T: Name>(&mut self, text: &str) -> T {
        let text = &*T::canonical(text);
        if text.is_empty() {
            return T::from_shared(ArcStr::new());
        }
        if let Some(held) = self.texts.held.get(text) {
            return T::from_shared(held.clone());
        }
        // A text without a reference count is a static one of the program.
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
    /// Adds a new value. The cost of searching for unused ones is amortised over the additions since the last search.
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
