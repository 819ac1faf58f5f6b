//! A cluster for tests: without a network, for what happens inside, and on loopback for its clients.

#![allow(clippy::unwrap_used, reason = "only tests are built with this module")]

use std::sync::Arc;

use isthmus_rt::task::Tasks;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::admission::{Admission, Webhook};
use super::controllers::Settings;
use super::error::Error;
use super::server::Server;
use super::store::Store;
use super::token::Issuer;
use super::verbs;
use crate::client::Client;
use crate::manifest::Kind;

/// Accepts every object.
pub const NO_WEBHOOK: Webhook = |_, _| Ok(());

pub(crate) fn kind(name: &str) -> &'static Kind {
    Kind::named(name).unwrap()
}

/// A server with namespace `sample` and two nodes.
pub(super) fn server() -> Server {
    let server = Server {
        store: Arc::new(Store::new()),
        issuer: Issuer::new().unwrap(),
        admission: Admission { service_cidr: "172.21.0.0/16".parse().unwrap(), webhook: NO_WEBHOOK },
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

/// A Deployment in namespace `default` whose pods carry the label `app`.
pub fn deployment(name: &str, replicas: u64, image: &str) -> Value {
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
    pub(crate) fn create(
        &self,
        kind_name: &str,
        namespace: Option<&str>,
        object: Value,
    ) -> Result<Value, Error> {
        self.change(|tx, context| verbs::create(tx, context, kind(kind_name), namespace, object))
    }
}

/// A server on loopback, and what its clients need.
pub struct Running {
    config: kube::Config,
    /// Owns the server and its connections.
    pub tasks: Tasks,
}

/// Starts one with what [`server`] has, which asks `webhook` about what is written.
pub async fn running(webhook: Webhook) -> Running {
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (cert_path, key_path) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert_path, cert.pem()).unwrap();
    std::fs::write(&key_path, key.serialize_pem()).unwrap();
    let tls = crate::tls::server(&cert_path, &key_path, &[]).unwrap();
    let mut server = server();
    server.admission.webhook = webhook;
    let server = Arc::new(server);
    super::bootstrap(&server, Some("10.0.0.1:6443".parse().unwrap())).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tasks = Tasks::new("test");
    let (server, group) = (Arc::clone(&server), tasks.clone());
    tasks.spawn("server", async move {
        super::run(server, listener, tls, group).await;
    });
    let mut config = kube::Config::new(format!("https://{address}").parse().unwrap());
    config.root_cert = Some(vec![cert.der().to_vec()]);
    Running { config, tasks }
}

impl Running {
    /// A client with the administrator's token.
    pub fn client(&self) -> Client {
        self.client_with("admin")
    }

    /// A client with this bearer token.
    pub fn client_with(&self, token: &str) -> Client {
        let mut config = self.config.clone();
        config.auth_info.token = Some(token.to_owned().into());
        Client::new(config).unwrap()
    }
}
