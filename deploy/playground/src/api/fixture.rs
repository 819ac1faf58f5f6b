//! A cluster without a network, for tests of what happens inside.

use std::sync::Arc;

use serde_json::{Value, json};

use super::admission::Admission;
use super::controllers::Settings;
use super::error::Error;
use super::server::Server;
use super::store::{Key, Store};
use super::target::Part;
use super::token::Issuer;
use super::verbs::{self, Deletion};
use crate::manifest::{Kind, object};

pub(super) fn kind(name: &str) -> &'static Kind {
    Kind::named(name).unwrap()
}

/// A server with namespace `sample` and two nodes.
pub(super) fn server() -> Server {
    let server = Server {
        store: Arc::new(Store::new()),
        issuer: Issuer::new().unwrap(),
        admission: Admission { service_cidr: "172.21.0.0/16".parse().unwrap() },
        settings: Settings {
            ca_pem: Some("PEM".to_owned()),
            load_balancers: vec![("sample/gw".to_owned(), "192.168.97.1".parse().unwrap())],
        },
        admin_token: "admin".to_owned(),
    };
    server.create("Namespace", None, json!({"metadata": {"name": "sample"}})).unwrap();
    for node in ["n1", "n2"] {
        server.create("Node", None, json!({"metadata": {"name": node}})).unwrap();
    }
    server
}

pub(super) fn deployment(name: &str, replicas: u64, image: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "main", "image": image}]},
            },
        },
    })
}

impl Server {
    pub(super) fn create(
        &self,
        kind_name: &str,
        namespace: Option<&str>,
        object: Value,
    ) -> Result<Value, Error> {
        self.change(|tx, context| verbs::create(tx, context, kind(kind_name), namespace, object))
    }

    pub(super) fn patch(&self, key: &Key, part: Part, patch: &Value) -> Result<Value, Error> {
        self.change(|tx, context| verbs::patch(tx, context, key, part, patch))
    }

    pub(super) fn delete(&self, key: &Key, grace: Option<u64>) -> Result<Value, Error> {
        self.change(|tx, context| verbs::delete(tx, context, key, &Deletion { grace, uid: None }))
    }

    pub(super) fn get(&self, key: &Key) -> Option<Arc<Value>> {
        self.store.transaction(|tx| tx.get(key))
    }

    pub(super) fn pods(&self) -> Vec<Arc<Value>> {
        self.store.transaction(|tx| tx.list(kind("Pod"), None))
    }

    /// Marks every pod ready, as a kubelet would.
    pub(super) fn run_pods(&self) {
        let ready =
            json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        for pod in self.pods() {
            self.patch(&key("Pod", object::name(&pod)), Part::Status, &ready).unwrap();
        }
    }

    /// Finishes the deletion of every pod that is to go, as a kubelet would.
    pub(super) fn stop_pods(&self) {
        for pod in self.pods().iter().filter(|pod| object::is_deleting(pod)) {
            self.delete(&key("Pod", object::name(pod)), Some(0)).unwrap();
        }
    }
}

pub(super) fn key(kind_name: &str, name: &str) -> Key {
    Key::new(kind(kind_name), "sample", name)
}
