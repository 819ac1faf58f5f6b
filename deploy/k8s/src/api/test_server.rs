//! What tests do to a server besides requests: the part of the kubelet.

use std::sync::Arc;

use serde_json::{Value, json};

use super::error::Error;
use super::fixture::kind;
use super::server::Server;
use super::store::Key;
use super::target::Part;
use super::verbs::{self, Deletion};
use crate::manifest::object;

pub(crate) fn key(kind_name: &str, name: &str) -> Key {
    Key::new(kind(kind_name), "sample", name)
}

impl Server {
    pub(crate) fn patch(&self, key: &Key, part: Part, patch: &Value) -> Result<Value, Error> {
        self.change(|tx, context| verbs::patch(tx, context, key, part, patch))
    }

    pub(crate) fn delete(&self, key: &Key, grace: Option<u64>) -> Result<Value, Error> {
        self.change(|tx, context| verbs::delete(tx, context, key, &Deletion { grace, uid: None }))
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Value>> {
        self.store.transaction(|tx| tx.get(key))
    }

    pub(crate) fn pods(&self) -> Vec<Arc<Value>> {
        self.store.transaction(|tx| tx.list(kind("Pod"), None))
    }

    /// Marks every pod ready, as a kubelet would.
    pub(crate) fn run_pods(&self) {
        let ready =
            json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        for pod in self.pods() {
            self.patch(&key("Pod", object::name(&pod)), Part::Status, &ready).unwrap();
        }
    }

    /// Finishes the deletion of every pod that is to go, as a kubelet would.
    pub(crate) fn stop_pods(&self) {
        for pod in self.pods().iter().filter(|pod| object::is_deleting(pod)) {
            self.delete(&key("Pod", object::name(pod)), Some(0)).unwrap();
        }
    }
}
