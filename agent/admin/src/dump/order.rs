//! Iterates over objects in order, with one pointer per object. A heap instead of a sort: each push and pop is short, so
//! the caller can yield in between.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use isthmus_model::{NamespacedHostname, Policy, Service, Workload};

use super::json::Json;

/// The order of a kind in the dump.
pub(super) trait Ordered: Sync {
    fn order(&self, other: &Self) -> Ordering;
}

impl Ordered for Workload {
    fn order(&self, other: &Self) -> Ordering {
        self.uid.cmp(&other.uid)
    }
}

impl Ordered for Service {
    fn order(&self, other: &Self) -> Ordering {
        (&self.hostname, &self.namespace).cmp(&(&other.hostname, &other.namespace))
    }
}

impl Ordered for Policy {
    fn order(&self, other: &Self) -> Ordering {
        (&self.namespace, &self.name).cmp(&(&other.namespace, &other.name))
    }
}

impl Ordered for NamespacedHostname {
    fn order(&self, other: &Self) -> Ordering {
        self.cmp(other)
    }
}

/// The remaining objects, smallest first.
pub(super) struct Order<'a, T: Ordered>(BinaryHeap<First<'a, T>>);

/// Reverses the order: `BinaryHeap` pops the greatest first.
struct First<'a, T>(&'a T);

impl<T: Ordered> Ord for First<'_, T> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.order(self.0)
    }
}

impl<T: Ordered> PartialOrd for First<'_, T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Ordered> PartialEq for First<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T: Ordered> Eq for First<'_, T> {}

impl<'a, T: Ordered> Order<'a, T> {
    /// Collects the selected objects, with yields.
    pub(super) async fn of(
        all: impl Iterator<Item = &'a T>,
        wanted: impl Fn(&T) -> bool,
        json: &mut Json,
    ) -> Self {
        // The exact capacity: growing by doubling would take up to three pointers per object.
        let mut heap = BinaryHeap::with_capacity(all.size_hint().0);
        for object in all {
            if wanted(object) {
                heap.push(First(object));
            }
            json.yield_if_long().await;
        }
        Self(heap)
    }

    /// The next one.
    pub(super) fn next(&mut self) -> Option<&'a T> {
        self.0.pop().map(|first| first.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_costs_a_pointer() {
        assert_eq!(size_of::<First<'_, Workload>>(), size_of::<usize>());
    }
}
