//! The client of an API server: [`kube`], for objects that are kept as JSON and found by their paths.
//!
//! The playground's objects are of two dozen kinds, several without Rust types, and most of its code treats all of them
//! alike. Where one kind is meant, [`Client::get_as`] and [`Client::create_as`] take its type.

mod watch;

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Method, Request};
use isthmus_rt::task::Tasks;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::mpsc;

pub use watch::{Collection, Event};

use crate::manifest::object;

/// For connecting and for a whole response; watches have none. kube's own timeouts would end idle watches too.
const DEADLINE: Duration = Duration::from_secs(15);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<KubeconfigError>,
    },
    /// The client's TLS cannot be set up.
    #[error("API client: {0}")]
    Client(#[source] Box<kube::Error>),
    /// The server refused the request.
    #[error("{method} {path}: {} {}: {}", status.code, status.reason, status.message)]
    Status {
        /// The request's method.
        method: Method,
        /// The request's path.
        path: String,
        /// The Kubernetes Status.
        status: Box<kube::core::Status>,
    },
    /// The server could not be reached, did not respond in time, or its response cannot be used.
    #[error("{method} {path}: {reason}")]
    Request {
        /// The request's method.
        method: Method,
        /// The request's path.
        path: String,
        /// What went wrong.
        reason: String,
    },
    /// An object of a kind that is not in the table of kinds.
    #[error("kind {0:?} is not known")]
    UnknownKind(String),
}

impl Error {
    /// The HTTP status, when the server responded.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(status.code),
            _ => None,
        }
    }

    /// Whether the object does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(404)
    }

    /// Whether the object exists already, or has been changed since it was read.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.status() == Some(409)
    }
}

/// One API server with our credentials. Clones share connections.
#[derive(Clone)]
pub struct Client(kube::Client);

// === impl Client ===

impl Client {
    /// A client for the current context of a kubeconfig file. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the file cannot be read or names no usable server, CA or token.
    pub async fn from_kubeconfig(path: &Path) -> Result<Self, Error> {
        let named = |source| Error::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
        let file = Kubeconfig::read_from(path).map_err(named)?;
        let current = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(file, &current).await;
        Self::new(config.map_err(named)?)
    }

    /// A client for a server. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the CA cannot be used.
    pub fn new(config: kube::Config) -> Result<Self, Error> {
        kube::Client::try_from(config).map(Self).map_err(|error| Error::Client(Box::new(error)))
    }

    /// One object, or nothing when it does not exist.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn get(&self, path: &str) -> Result<Option<Value>, Error> {
        found(self.request(Method::GET, path, None).await)
    }

    /// The same as a value of its type.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses, or the object is not of the type.
    pub async fn get_as<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Error> {
        let found = self.get(path).await?;
        found.map(|object| typed(&Method::GET, path, object)).transpose()
    }

    /// The objects of a collection; the path may carry a query with selectors. Items are given the kind that a list
    /// leaves out.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn list(&self, path: &str) -> Result<Vec<Value>, Error> {
        let mut list = self.request(Method::GET, path, None).await?;
        let api_version = list["apiVersion"].clone();
        let kind = object::text(&list, "/kind").trim_end_matches("List").to_owned();
        let Value::Array(mut items) = list["items"].take() else {
            let reason = "the response has no items".to_owned();
            return Err(Error::Request { method: Method::GET, path: path.to_owned(), reason });
        };
        for item in items.iter_mut().filter_map(Value::as_object_mut) {
            item.entry("apiVersion").or_insert_with(|| api_version.clone());
            item.entry("kind").or_insert_with(|| Value::String(kind.clone()));
        }
        Ok(items)
    }

    /// Creates an object in a collection and returns it as stored.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn create(&self, collection: &str, object: &Value) -> Result<Value, Error> {
        self.request(Method::POST, collection, Some(("application/json", object))).await
    }

    /// The same for a value of its type.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses, or what it stored is not of the type.
    pub async fn create_as<T>(&self, collection: &str, object: &T) -> Result<T, Error>
    where
        T: Serialize + DeserializeOwned,
    {
        typed(&Method::POST, collection, self.create(collection, &json!(object)).await?)
    }

    /// Merges a patch (RFC 7386) into an object; the path may end in `/status`.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn merge_patch(&self, path: &str, patch: &Value) -> Result<Value, Error> {
        self.request(Method::PATCH, path, Some(("application/merge-patch+json", patch))).await
    }

    /// Creates an object of a known kind, or merges it into the existing one.
    ///
    /// # Errors
    /// When its kind is unknown, the server cannot be reached, or it refuses.
    pub async fn apply(&self, object: &Value) -> Result<Value, Error> {
        let unknown = || Error::UnknownKind(object::text(object, "/kind").to_owned());
        let kind = object::kind(object).ok_or_else(unknown)?;
        let (namespace, name) = (object::namespace(object), object::name(object));
        let namespace = if namespace.is_empty() { "default" } else { namespace };
        match self.create(&kind.collection(Some(namespace)), object).await {
            Err(error) if error.is_conflict() => self.merge_patch(&kind.path(namespace, name), object).await,
            outcome => outcome,
        }
    }

    /// Deletes an object without a grace period, as a kubelet does when a pod's processes are gone. A missing object is
    /// no error.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn delete_now(&self, path: &str) -> Result<(), Error> {
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0});
        let deleted = self.request(Method::DELETE, path, Some(("application/json", &options))).await;
        found(deleted).map(drop)
    }

    /// Deletes an object with its own grace period; returns it with the resource version of the deletion, or nothing
    /// when it does not exist.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn delete(&self, path: &str) -> Result<Option<Value>, Error> {
        found(self.request(Method::DELETE, path, None).await)
    }

    /// A token for a service account, by TokenRequest.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn token(
        &self,
        namespace: &str,
        account: &str,
        spec: TokenRequestSpec,
    ) -> Result<String, Error> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let response = self.create_as(&path, &request).await?;
        let missing = || Error::Request { method: Method::POST, path, reason: "no status.token".to_owned() };
        response.status.map(|status| status.token).filter(|token| !token.is_empty()).ok_or_else(missing)
    }

    /// Follows a collection in a task: every object that exists, [`Event::Synced`], then every change. After a relist
    /// it reports what vanished meanwhile, and [`Event::Synced`] again. The task ends when the receiver or `tasks` is
    /// dropped.
    #[must_use]
    pub fn watch(&self, collection: Collection, tasks: &Tasks) -> mpsc::Receiver<Event> {
        watch::start(self.0.clone(), collection, tasks)
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Value, Error> {
        let failed =
            |reason: String| Error::Request { method: method.clone(), path: path.to_owned(), reason };
        let mut request = Request::builder().method(method.clone()).uri(path);
        if let Some((content_type, _)) = body {
            request = request.header(http::header::CONTENT_TYPE, content_type);
        }
        let body = body.map_or_else(Vec::new, |(_, value)| value.to_string().into_bytes());
        let request = request.body(body).map_err(|error| failed(error.to_string()))?;
        match tokio::time::timeout(DEADLINE, self.0.request(request)).await {
            Err(_) => Err(failed(format!("no response within {DEADLINE:?}"))),
            Ok(Err(kube::Error::Api(status))) => {
                Err(Error::Status { method: method.clone(), path: path.to_owned(), status })
            }
            Ok(response) => response.map_err(|error| failed(chain(&error))),
        }
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

fn typed<T: DeserializeOwned>(method: &Method, path: &str, object: Value) -> Result<T, Error> {
    serde_json::from_value(object).map_err(|error| Error::Request {
        method: method.clone(),
        path: path.to_owned(),
        reason: format!("the response is not of the expected type: {error}"),
    })
}

fn found(outcome: Result<Value, Error>) -> Result<Option<Value>, Error> {
    match outcome {
        Err(error) if error.is_not_found() => Ok(None),
        outcome => outcome.map(Some),
    }
}

/// An error with its causes: kube's own texts end before the reason, such as a refused connection.
fn chain(error: &kube::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
