//! A small Kubernetes client: objects are JSON, requests are HTTP/1.1 over TLS with a bearer token. It speaks to the
//! playground's API server and to a real one alike, and knows paths only as far as the table of kinds gives them.

mod kubeconfig;
mod transport;
mod watch;

use std::path::Path;
use std::sync::Arc;

use http::{Method, StatusCode};
use isthmus_rt::task::Tasks;
use serde_json::{Value, json};
use tokio::sync::mpsc;

pub use kubeconfig::{Kubeconfig, Token};
pub use watch::Event;

use crate::manifest::object;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {0}")]
    Kubeconfig(String),
    /// The bearer token's file cannot be read.
    #[error("token file {0}")]
    Token(String),
    /// No answer: the server cannot be reached or broke off.
    #[error("{method} {server}{path}: {reason}")]
    Transport {
        /// The request's method.
        method: Method,
        /// The API server.
        server: String,
        /// The request's path.
        path: String,
        /// What went wrong.
        reason: String,
    },
    /// The server refused.
    #[error("{method} {path}: {status} {reason}: {message}")]
    Status {
        /// The request's method.
        method: Method,
        /// The request's path.
        path: String,
        /// HTTP status.
        status: StatusCode,
        /// `reason` of the Kubernetes Status, such as `AlreadyExists`.
        reason: String,
        /// `message` of the Kubernetes Status.
        message: String,
    },
    /// The answer is not what the API promises.
    #[error("{method} {path}: unusable answer: {reason}")]
    Body {
        /// The request's method.
        method: Method,
        /// The request's path.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// One API server and who we are to it. Clones share the idle connection.
#[derive(Debug, Clone)]
pub struct Client(Arc<transport::Transport>);

impl Error {
    /// The HTTP status, when the server answered.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the object does not exist.
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(StatusCode::NOT_FOUND)
    }

    /// Whether the object exists already, or was changed by somebody else.
    pub fn is_conflict(&self) -> bool {
        self.status() == Some(StatusCode::CONFLICT)
    }
}

// === impl Client ===

impl Client {
    /// A client for the current context of a kubeconfig file.
    ///
    /// # Errors
    /// When the file cannot be read or names no usable server, CA or token.
    pub fn from_kubeconfig(path: &Path) -> Result<Self, Error> {
        Self::new(Kubeconfig::read(path)?)
    }

    /// A client for a server.
    ///
    /// # Errors
    /// When the server's address or CA cannot be used.
    pub fn new(config: Kubeconfig) -> Result<Self, Error> {
        Ok(Self(Arc::new(transport::Transport::new(config)?)))
    }

    /// One object, or nothing when it does not exist.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn get(&self, path: &str) -> Result<Option<Value>, Error> {
        match self.0.json(Method::GET, path, None).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The objects of a collection; the path may carry a query with selectors.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn list(&self, path: &str) -> Result<Vec<Value>, Error> {
        Ok(self.list_at(path).await?.0)
    }

    /// Creates an object in a collection; gives it back as stored.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn create(&self, collection: &str, object: &Value) -> Result<Value, Error> {
        self.0.json(Method::POST, collection, Some(("application/json", object))).await
    }

    /// Merges a patch (RFC 7386) into an object; the path may end in `/status`.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn merge_patch(&self, path: &str, patch: &Value) -> Result<Value, Error> {
        self.0.json(Method::PATCH, path, Some(("application/merge-patch+json", patch))).await
    }

    /// Creates an object of a known kind, or merges it into the one that exists.
    ///
    /// # Errors
    /// When its kind is unknown, the server cannot be reached, or it refuses.
    pub async fn apply(&self, object: &Value) -> Result<Value, Error> {
        let Some(kind) = object::kind(object) else {
            return Err(Error::Body {
                method: Method::POST,
                path: String::new(),
                reason: format!("the object's kind {:?} is unknown here", object::text(object, "/kind")),
            });
        };
        let (namespace, name) = (object::namespace(object), object::name(object));
        let namespace = if namespace.is_empty() { "default" } else { namespace };
        match self.create(&kind.collection(Some(namespace)), object).await {
            Err(error) if error.is_conflict() => self.merge_patch(&kind.path(namespace, name), object).await,
            outcome => outcome,
        }
    }

    /// Deletes an object at once, as a kubelet does when a pod's processes are gone. What does not
    /// exist is no error.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn delete_now(&self, path: &str) -> Result<(), Error> {
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
        match self.0.json(Method::DELETE, path, Some(("application/json", &options))).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Deletes an object in its own time; gives it back under the version of the deletion, or nothing when it does not
    /// exist.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn delete(&self, path: &str) -> Result<Option<Value>, Error> {
        match self.0.json(Method::DELETE, path, None).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A token for a service account, by TokenRequest; `spec` has `audiences`, `expirationSeconds` and
    /// `boundObjectRef`.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn token(&self, namespace: &str, account: &str, spec: Value) -> Result<String, Error> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        let answer = self.create(&path, &request).await?;
        match object::text(&answer, "/status/token") {
            "" => Err(Error::Body { method: Method::POST, path, reason: "no status.token".to_owned() }),
            token => Ok(token.to_owned()),
        }
    }

    /// Follows a collection for ever in a task: everything that exists, [`Event::Synced`], then every change. When the
    /// connection breaks it lists again, tells what vanished meanwhile, and says [`Event::Synced`] again. The task ends
    /// when the receiver or `tasks` is dropped.
    pub fn watch(&self, collection: String, tasks: &Tasks) -> mpsc::Receiver<Event> {
        watch::start(self.clone(), collection, tasks)
    }

    /// The objects of a collection with the version of the list. Items are given the kind that a list leaves out.
    async fn list_at(&self, path: &str) -> Result<(Vec<Value>, String), Error> {
        let mut answer = self.0.json(Method::GET, path, None).await?;
        let version = object::text(&answer, "/metadata/resourceVersion").to_owned();
        let api_version = answer["apiVersion"].clone();
        let kind = object::text(&answer, "/kind").trim_end_matches("List").to_owned();
        let Value::Array(mut items) = answer["items"].take() else {
            let (method, path) = (Method::GET, path.to_owned());
            return Err(Error::Body { method, path, reason: "no list of items".to_owned() });
        };
        for item in items.iter_mut().filter_map(Value::as_object_mut) {
            item.entry("apiVersion").or_insert_with(|| api_version.clone());
            item.entry("kind").or_insert_with(|| Value::String(kind.clone()));
        }
        Ok((items, version))
    }
}
