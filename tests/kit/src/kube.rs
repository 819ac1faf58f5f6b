//! A scripted Kubernetes API server: the test's objects, list and watch with real resource versions, the patch of a pod's
//! status, and the Gateway API with its statuses. No controller runs in it: objects change only when the test or a client changes them.

mod gateway_api;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use isthmus_rt::task::Tasks;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Longest wait for a request that a client sends at once unless it is broken.
const PATIENCE: Duration = Duration::from_secs(30);
const REDIRECTION: &str = "ambient.istio.io/redirection";

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What the cluster holds; clones share it.
#[derive(Clone, Default)]
pub struct Api(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    version: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Value>,
    /// Every change since the beginning: plural and watch event. The resource version is the index in here.
    changes: Vec<(String, Value)>,
    refuse_patches: Option<u16>,
    /// Plurals whose lists and watches are forbidden.
    forbidden: BTreeSet<String>,
    has_gateway_api: bool,
    patched: BTreeMap<Key, usize>,
}

/// Plural (`pods`, `namespaces`), then `namespace/name`, or the name alone.
type Key = (String, String);

/// Which objects a request is about.
struct Selection {
    plural: String,
    namespace: Option<String>,
    /// `path=value` of a field selector.
    field: Option<(String, String)>,
}

impl Api {
    /// Serves on a listener until the tasks end.
    pub fn serve(&self, listener: TcpListener, tasks: &Tasks) {
        let (server, connections) = (self.clone(), tasks.clone());
        tasks.spawn("api server", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                connections.spawn("api connection", async move {
                    let service = service_fn(move |request| {
                        let server = server.clone();
                        async move { Ok::<_, Infallible>(server.answer(request).await) }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
    }

    /// Creates an object, or replaces the one of its name.
    pub fn put(&self, plural: &str, mut object: Value) {
        let mut state = self.lock();
        let version = state.changes.len() + 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let key = (plural.to_owned(), name(&object));
        let kind = if state.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        state.objects.insert(key, object.clone());
        state.changes.push((plural.to_owned(), json!({"type": kind, "object": object})));
        self.0.version.send_replace(version);
    }

    /// Deletes an object.
    pub fn delete(&self, plural: &str, name: &str) {
        let mut state = self.lock();
        let Some(object) = state.objects.remove(&(plural.to_owned(), name.to_owned())) else { return };
        state.changes.push((plural.to_owned(), json!({"type": "DELETED", "object": object})));
        self.0.version.send_replace(state.changes.len());
    }

    /// Changes an object.
    pub fn change(&self, plural: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let mut object = self.get(plural, name);
        change(&mut object);
        self.put(plural, object);
    }

    /// Sets a label, or removes it.
    pub fn label(&self, plural: &str, name: &str, key: &str, value: Option<&str>) {
        self.change(plural, name, |object| match (value, object["metadata"]["labels"].as_object_mut()) {
            (Some(value), _) => object["metadata"]["labels"][key] = json!(value),
            (None, Some(labels)) => drop(labels.remove(key)),
            (None, None) => {}
        });
    }

    /// An object; null when there is none.
    #[must_use]
    pub fn get(&self, plural: &str, name: &str) -> Value {
        self.lock().objects.get(&(plural.to_owned(), name.to_owned())).cloned().unwrap_or_default()
    }

    /// Answers every patch with this status from now on.
    pub fn refuse_patches(&self, status: Option<u16>) {
        self.lock().refuse_patches = status;
    }

    /// How often the status of an object of the Gateway API was changed by a patch.
    #[must_use]
    pub fn patched(&self, plural: &str, name: &str) -> usize {
        self.lock().patched.get(&(plural.to_owned(), name.to_owned())).copied().unwrap_or_default()
    }

    /// Forbids reading these objects, or allows it again.
    pub fn forbid(&self, plural: &str, forbidden: bool) {
        let all = &mut self.lock().forbidden;
        _ = if forbidden { all.insert(plural.to_owned()) } else { all.remove(plural) };
    }

    /// A pod's redirection annotation.
    #[must_use]
    pub fn redirection(&self, pod: &str) -> Option<String> {
        let object = self.get("pods", pod);
        object["metadata"]["annotations"][REDIRECTION].as_str().map(str::to_owned)
    }

    /// Waits until a pod's redirection annotation has this value.
    ///
    /// # Errors
    /// When it does not come to have it.
    pub async fn redirected(&self, pod: &str, want: Option<&str>) -> Result<()> {
        let mut version = self.0.version.subscribe();
        let reached = version.wait_for(|_| self.redirection(pod).as_deref() == want);
        let wait = tokio::time::timeout(PATIENCE, reached).await.map(drop);
        wait.with_context(|| format!("{pod}: annotation is {:?}, not {want:?}", self.redirection(pod)))
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let query = parts.uri.query().unwrap_or_default().replace("%3D", "=");
        let path: Vec<_> = parts.uri.path().trim_matches('/').split('/').collect();
        let field = parameter(&query, "fieldSelector").and_then(|text| text.split_once('='));
        let field = field.map(|(path, value)| (path.to_owned(), value.to_owned()));
        let select = |namespace: Option<&str>, plural: &str| Selection {
            plural: plural.to_owned(),
            namespace: namespace.map(str::to_owned),
            field,
        };
        match (&parts.method, path.as_slice()) {
            (&Method::GET, ["api", "v1", plural]) => self.list(select(None, plural), &query),
            (&Method::GET, ["api", "v1", "namespaces", name]) => self.read("namespaces", name),
            (&Method::GET, ["api", "v1", "namespaces", namespace, plural]) => {
                self.list(select(Some(namespace), plural), &query)
            }
            (&Method::GET, ["api", "v1", "namespaces", namespace, plural, name]) => {
                self.read(plural, &format!("{namespace}/{name}"))
            }
            (&Method::GET, ["api", "v1", plural, name]) => self.read(plural, name),
            (&Method::GET, ["apis", "apps", "v1", "namespaces", namespace, plural, name]) => {
                self.read(plural, &format!("{namespace}/{name}"))
            }
            (&Method::PATCH, ["api", "v1", "namespaces", namespace, "pods", name, "status"]) => {
                let patch = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
                match serde_json::from_slice(&patch) {
                    Ok(patch) => self.patch(&format!("{namespace}/{name}"), &patch),
                    Err(error) => status(StatusCode::BAD_REQUEST, &error.to_string()),
                }
            }
            (method, ["apis", rest @ ..]) => {
                let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
                let patch = (*method == Method::PATCH).then_some(body);
                self.gateway_api(
                    rest,
                    |namespace, plural| self.list(select(namespace, plural), &query),
                    patch,
                )
            }
            (method, _) => {
                status(StatusCode::NOT_FOUND, &format!("{method} {} is not scripted", parts.uri.path()))
            }
        }
    }

    fn read(&self, plural: &str, name: &str) -> Response<Body> {
        match self.get(plural, name) {
            Value::Null => status(StatusCode::NOT_FOUND, &format!("{plural} {name:?} not found")),
            object => reply(StatusCode::OK, &object),
        }
    }

    fn list(&self, selection: Selection, query: &str) -> Response<Body> {
        if self.lock().forbidden.contains(&selection.plural) {
            return status(StatusCode::FORBIDDEN, &format!("cannot list resource {:?}", selection.plural));
        }
        if parameter(query, "watch") == Some("true") {
            let from = parameter(query, "resourceVersion").and_then(|text| text.parse().ok());
            return self.watch(selection, from.unwrap_or_default());
        }
        let state = self.lock();
        let of = |((plural, _), object): &(&Key, &Value)| selection.matches(plural, object);
        let items: Vec<_> = state.objects.iter().filter(of).map(|(_, object)| object.clone()).collect();
        let version = state.changes.len().to_string();
        let body = json!({"kind": "List", "metadata": {"resourceVersion": version}, "items": items});
        reply(StatusCode::OK, &body)
    }

    fn watch(&self, selection: Selection, from: usize) -> Response<Body> {
        let state = (from, self.clone(), self.0.version.subscribe(), selection);
        let lines = futures_util::stream::unfold(state, |(at, api, mut version, selection)| async move {
            loop {
                version.borrow_and_update();
                let fresh = api.lock().changes.get(at..).map(<[_]>::to_vec).unwrap_or_default();
                if !fresh.is_empty() {
                    let next = at + fresh.len();
                    let of = |(plural, event): &&(String, Value)| selection.matches(plural, &event["object"]);
                    let text: String =
                        fresh.iter().filter(of).map(|(_, event)| format!("{event}\n")).collect();
                    return Some((text, (next, api, version, selection)));
                }
                version.changed().await.ok()?;
            }
        });
        let frames = lines.map(|text| Ok(Frame::data(Bytes::from(text))));
        Response::new(StreamBody::new(frames).boxed_unsync())
    }

    fn patch(&self, name: &str, patch: &Value) -> Response<Body> {
        if let Some(refusal) = self.lock().refuse_patches {
            let code = StatusCode::from_u16(refusal).unwrap_or(StatusCode::FORBIDDEN);
            return status(code, "pods/status is forbidden");
        }
        let before = self.get("pods", name);
        if before.is_null() || before["metadata"]["uid"] != patch["metadata"]["uid"] {
            return status(StatusCode::NOT_FOUND, "that pod is gone");
        }
        let mut pod = before.clone();
        for (key, value) in patch["metadata"]["annotations"].as_object().into_iter().flatten() {
            match (value, pod["metadata"]["annotations"].as_object_mut()) {
                (Value::Null, Some(all)) => drop(all.remove(key)),
                (Value::Null, None) => {}
                _ => pod["metadata"]["annotations"][key] = value.clone(),
            }
        }
        // As in the real API server, a patch that changes nothing makes no new resource version.
        if pod != before {
            self.put("pods", pod.clone());
        }
        reply(StatusCode::OK, &pod)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Selection {
    fn matches(&self, plural: &str, object: &Value) -> bool {
        let namespace = object["metadata"]["namespace"].as_str();
        let field = self.field.as_ref().is_none_or(|(path, value)| {
            object.pointer(&format!("/{}", path.replace('.', "/"))).and_then(Value::as_str) == Some(value)
        });
        plural == self.plural && self.namespace.as_deref().is_none_or(|ns| namespace == Some(ns)) && field
    }
}

fn parameter<'a>(query: &'a str, key: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
}

fn name(object: &Value) -> String {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default();
    metadata["namespace"].as_str().map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"))
}

fn status(code: StatusCode, message: &str) -> Response<Body> {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(),
                      "reason": code.canonical_reason(), "message": message});
    reply(code, &body)
}

fn reply(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Full::from(body.to_string()).boxed_unsync());
    *response.status_mut() = status;
    response
}

/// A namespace with labels.
#[must_use]
pub fn namespace(name: &str, labels: &[(&str, &str)]) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": map(labels)}})
}

/// A pod of a node whose service account has its name; without an address it is still being created.
#[must_use]
pub fn pod(namespace: &str, name: &str, node: &str, ip: Option<&str>) -> Value {
    let status = ip.map_or_else(
        || json!({"phase": "Pending"}),
        |ip| json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}),
    );
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-{name}"),
                     "labels": {}, "annotations": {}},
        "spec": {"nodeName": node, "serviceAccountName": name, "containers": []},
        "status": status,
    })
}

/// A service with labels.
#[must_use]
pub fn service(namespace: &str, name: &str, labels: &[(&str, &str)]) -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
           "metadata": {"name": name, "namespace": namespace, "labels": map(labels)}, "spec": {}})
}

/// The text of a kubeconfig for a server.
#[must_use]
pub fn kubeconfig(url: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- {{name: c, cluster: {{server: \"{url}\"}}}}\n\
         users:\n- {{name: u, user: {{token: t}}}}\ncontexts:\n- {{name: c, context: {{cluster: c, user: u}}}}\n"
    )
}

fn map(labels: &[(&str, &str)]) -> Value {
    labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), json!(value)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
