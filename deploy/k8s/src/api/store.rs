//! The objects of one cluster in memory, with a revision that grows with every change and a log of recent changes for
//! watchers. It knows identity and order, not what objects mean.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::watch;

use crate::manifest::{Kind, object};

/// How many changes are kept for watchers that are behind.
const LOG: usize = 4096;

/// Where an object is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// Kind of the table.
    pub(crate) kind: &'static Kind,
    /// Empty for cluster-scoped kinds.
    pub(crate) namespace: String,
    /// Name within the namespace.
    pub(crate) name: String,
}

/// What a logged change did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// There was no such object before.
    Added,
    /// There was one.
    Modified,
    /// There is none any more.
    Deleted,
}

/// One change, as watchers see it.
#[derive(Debug, Clone)]
pub(crate) struct Logged {
    /// What happened.
    pub(crate) change: Change,
    /// Revision of the store after it.
    pub(crate) revision: u64,
    /// The kind that it belongs to.
    pub(crate) kind: &'static Kind,
    /// The object after it; for a deletion the last content, under the revision of the deletion.
    pub(crate) object: Arc<Value>,
    /// The object before it.
    pub(crate) before: Option<Arc<Value>>,
}

/// The revision that a watcher asked for is no longer in the log; the oldest that is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooOld(pub(crate) u64);

/// The objects of one cluster.
#[derive(Debug)]
pub(crate) struct Store {
    inner: Mutex<StoreState>,
    revision: watch::Sender<u64>,
}

#[derive(Debug)]
struct StoreState {
    revision: u64,
    objects: BTreeMap<Key, Arc<Value>>,
    log: VecDeque<Logged>,
    /// Changes up to this revision have left the log.
    forgotten: u64,
}

/// Exclusive access to the objects. What is written through it is seen by others all at once.
#[derive(Debug)]
pub(crate) struct Tx<'a>(MutexGuard<'a, StoreState>);

// === impl Key ===

impl Key {
    /// The key of an object of `kind`; the namespace of a cluster-scoped kind is dropped.
    pub(crate) fn new(kind: &'static Kind, namespace: &str, name: &str) -> Self {
        let namespace = if kind.namespaced { namespace.to_owned() } else { String::new() };
        Self { kind, namespace, name: name.to_owned() }
    }
}

// === impl Store ===

impl Store {
    /// An empty store.
    pub(crate) fn new() -> Self {
        let inner = StoreState { revision: 1, objects: BTreeMap::new(), log: VecDeque::new(), forgotten: 1 };
        Self { inner: Mutex::new(inner), revision: watch::Sender::new(1) }
    }

    /// Runs `f` with exclusive access, then tells watchers.
    pub(crate) fn transaction<T>(&self, f: impl FnOnce(&mut Tx<'_>) -> T) -> T {
        let mut tx = Tx(self.lock());
        let before = tx.revision();
        let outcome = f(&mut tx);
        let after = tx.revision();
        drop(tx);
        if after != before {
            self.revision.send_modify(|revision| *revision = after.max(*revision));
        }
        outcome
    }

    /// Says when the revision grows.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Changes of a kind after a revision, oldest first, and the revision up to which they reach.
    ///
    /// # Errors
    /// When the log no longer reaches back that far.
    pub(crate) fn since(&self, kind: &'static Kind, revision: u64) -> Result<(Vec<Logged>, u64), TooOld> {
        let inner = self.lock();
        if revision < inner.forgotten {
            return Err(TooOld(inner.forgotten));
        }
        let newer = inner.log.iter().rev().take_while(|logged| logged.revision > revision);
        let mut changes: Vec<Logged> = newer.filter(|logged| logged.kind == kind).cloned().collect();
        changes.reverse();
        Ok((changes, inner.revision))
    }

    fn lock(&self) -> MutexGuard<'_, StoreState> {
        // Every write leaves the maps whole, so a panic elsewhere does not spoil them.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Tx ===

impl Tx<'_> {
    /// The revision after the last write.
    pub(crate) fn revision(&self) -> u64 {
        self.0.revision
    }

    /// One object.
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Value>> {
        self.0.objects.get(key).cloned()
    }

    /// The objects of a kind in one namespace or in all, by namespace and name.
    pub(crate) fn list(&self, kind: &'static Kind, namespace: Option<&str>) -> Vec<Arc<Value>> {
        let all = self.0.objects.iter().filter(|(key, _)| key.kind == kind);
        let wanted = all.filter(|(key, _)| namespace.is_none_or(|namespace| key.namespace == namespace));
        wanted.map(|(_, object)| Arc::clone(object)).collect()
    }

    /// Every object, with its key.
    pub(crate) fn all(&self) -> Vec<(Key, Arc<Value>)> {
        self.0.objects.iter().map(|(key, object)| (key.clone(), Arc::clone(object))).collect()
    }

    /// Stores an object under the next revision; one that changes nothing is not a change.
    pub(crate) fn put(&mut self, key: &Key, mut object: Value) -> Arc<Value> {
        let before = self.get(key);
        if let Some(before) = &before {
            object["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
            if **before == object {
                return Arc::clone(before);
            }
        }
        let object = self.stamp(object);
        self.0.objects.insert(key.clone(), Arc::clone(&object));
        let change = if before.is_some() { Change::Modified } else { Change::Added };
        self.log(change, key.kind, &object, before);
        object
    }

    /// Removes an object; gives back its last content under the revision of the removal.
    pub(crate) fn remove(&mut self, key: &Key) -> Option<Arc<Value>> {
        let before = self.0.objects.remove(key)?;
        let object = self.stamp(Value::clone(&before));
        self.log(Change::Deleted, key.kind, &object, Some(before));
        Some(object)
    }

    /// Gives an object the next revision.
    fn stamp(&mut self, mut object: Value) -> Arc<Value> {
        self.0.revision += 1;
        object["metadata"]["resourceVersion"] = Value::String(self.0.revision.to_string());
        Arc::new(object)
    }

    fn log(&mut self, change: Change, kind: &'static Kind, object: &Arc<Value>, before: Option<Arc<Value>>) {
        let (revision, object) = (self.0.revision, Arc::clone(object));
        self.0.log.push_back(Logged { change, revision, kind, object, before });
        while self.0.log.len() > LOG {
            let oldest = self.0.log.pop_front().map(|logged| logged.revision);
            self.0.forgotten = oldest.unwrap_or(self.0.forgotten);
        }
    }
}

/// The key of a stored object.
pub(crate) fn key_of(kind: &'static Kind, object: &Value) -> Key {
    Key::new(kind, object::namespace(object), object::name(object))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(name: &str) -> Key {
        Key::new(Kind::named("Pod").unwrap(), "a", name)
    }

    fn pod(label: &str) -> Value {
        json!({"metadata": {"name": "p", "namespace": "a", "labels": {"x": label}}})
    }

    #[test]
    fn every_change_is_logged_once_and_in_order() {
        let store = Store::new();
        let start = store.transaction(|tx| tx.revision());
        store.transaction(|tx| {
            tx.put(&key("p"), pod("1"));
            tx.put(&key("p"), pod("1"));
            tx.put(&key("p"), pod("2"));
            tx.remove(&key("p"));
        });
        let (changes, now) = store.since(key("p").kind, start).unwrap();
        let seen: Vec<Change> = changes.iter().map(|logged| logged.change).collect();
        assert_eq!(seen, [Change::Added, Change::Modified, Change::Deleted]);
        assert_eq!(changes[2].object["metadata"]["resourceVersion"], now.to_string());
        assert_eq!(*store.subscribe().borrow(), now);
        assert!(store.since(Kind::named("Node").unwrap(), start).unwrap().0.is_empty());
    }

    #[test]
    fn what_left_the_log_is_too_old() {
        let store = Store::new();
        store.transaction(|tx| {
            for at in 0..=LOG {
                tx.put(&key("p"), pod(&at.to_string()));
            }
        });
        assert_eq!(store.since(key("p").kind, 1).unwrap_err(), TooOld(2));
        assert_eq!(store.since(key("p").kind, 2).unwrap().0.len(), LOG);
    }
}
