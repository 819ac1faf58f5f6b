//! A cluster for tests: without a network, for what happens inside, and on loopback for its clients.

use std::sync::Arc;

use isthmus_rt::task::Tasks;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::admission::Admission;
use super::controllers::Settings;
use super::error::Error;
use super::server::Server;
use super::store::{Key, Store};
use super::target::Part;
use super::token::Issuer;
use super::verbs::{self, Deletion};
use crate::kubeclient::{Client, Kubeconfig, Token};
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

pub(crate) fn deployment(name: &str, replicas: u64, image: &str) -> Value {
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

/// A server on loopback, and what its clients need.
pub(crate) struct Running {
    config: Kubeconfig,
    pub(crate) tasks: Tasks,
}

/// Starts one with what [`server`] has.
pub(crate) async fn running() -> Running {
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (cert_path, key_path) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert_path, cert.pem()).unwrap();
    std::fs::write(&key_path, key.serialize_pem()).unwrap();
    let tls = crate::tls::server(&cert_path, &key_path, &[]).unwrap();
    let server = Arc::new(server());
    super::bootstrap(&server, Some("10.0.0.1:6443".parse().unwrap())).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tasks = Tasks::new("test");
    let (server, group) = (Arc::clone(&server), tasks.clone());
    tasks.spawn("server", async move {
        super::run(server, listener, tls, group).await;
    });
    let config = Kubeconfig {
        server: format!("https://{address}"),
        ca_pem: cert.pem(),
        tls_server_name: None,
        token: Token::Fixed("admin".to_owned()),
    };
    Running { config, tasks }
}

impl Running {
    pub(crate) fn client(&self) -> Client {
        Client::new(self.config.clone()).unwrap()
    }

    pub(crate) fn client_with(&self, token: &str) -> Client {
        Client::new(Kubeconfig { token: Token::Fixed(token.to_owned()), ..self.config.clone() }).unwrap()
    }
}
