//! A small API server: list, watch and the patch of a pod's status, with real resource versions.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use isthmus_rt::task::Tasks;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The server's state; clones share it.
#[derive(Clone)]
pub(crate) struct Api(Arc<SharedState>);

struct SharedState {
    state: Mutex<State>,
    version: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    /// By plural (`pods`, `namespaces`), then by `namespace/name`.
    objects: BTreeMap<(String, String), Value>,
    /// Every change since the beginning: plural and watch event. The resource version is the index + 1.
    changes: Vec<(String, Value)>,
    /// Answers every patch with this status, if set.
    refuse_patches: Option<u16>,
}

impl Api {
    /// A server without objects, on a loopback port.
    pub(crate) async fn start(tasks: &Tasks) -> (Self, String) {
        let api = Self(Arc::new(SharedState { state: Mutex::default(), version: watch::channel(0).0 }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (server, connections) = (api.clone(), tasks.clone());
        tasks.spawn("api server", async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let server = server.clone();
                let service = service_fn(move |request| {
                    let server = server.clone();
                    async move { Ok::<_, Infallible>(server.answer(request).await) }
                });
                connections.spawn("api connection", async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        (api, url)
    }

    pub(crate) fn put(&self, plural: &str, mut object: Value) {
        let mut state = self.0.state.lock().unwrap();
        let version = state.changes.len() + 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let key = (plural.to_owned(), key(&object));
        let kind = if state.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        state.objects.insert(key, object.clone());
        state.changes.push((plural.to_owned(), json!({"type": kind, "object": object})));
        self.0.version.send_replace(version);
    }

    pub(crate) fn delete(&self, plural: &str, name: &str) {
        let mut state = self.0.state.lock().unwrap();
        let object = state.objects.remove(&(plural.to_owned(), name.to_owned())).unwrap();
        state.changes.push((plural.to_owned(), json!({"type": "DELETED", "object": object})));
        self.0.version.send_replace(state.changes.len());
    }

    /// Changes one object in place.
    pub(crate) fn change(&self, plural: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let mut object = self.get(plural, name);
        change(&mut object);
        self.put(plural, object);
    }

    pub(crate) fn refuse_patches(&self, status: Option<u16>) {
        self.0.state.lock().unwrap().refuse_patches = status;
    }

    fn get(&self, plural: &str, name: &str) -> Value {
        self.0.state.lock().unwrap().objects[&(plural.to_owned(), name.to_owned())].clone()
    }

    /// Waits until the pod's redirection annotation has this value.
    pub(crate) async fn annotated(&self, name: &str, want: Option<&str>) {
        let mut version = self.0.version.subscribe();
        let is = || {
            self.get("pods", name)["metadata"]["annotations"]["ambient.istio.io/redirection"].as_str() == want
        };
        let reached = async {
            loop {
                version.borrow_and_update();
                let pod = self.get("pods", name);
                if pod["metadata"]["annotations"]["ambient.istio.io/redirection"].as_str() == want {
                    return;
                }
                version.changed().await.unwrap();
            }
        };
        let limit = std::time::Duration::from_secs(10);
        assert!(tokio::time::timeout(limit, reached).await.is_ok() && is(), "{name} never became {want:?}");
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let path: Vec<_> = parts.uri.path().trim_matches('/').split('/').map(str::to_owned).collect();
        let path: Vec<_> = path.iter().map(String::as_str).collect();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        match (parts.method, path.as_slice()) {
            (Method::GET, ["api", "v1", plural]) if query.contains("watch=true") => {
                self.watch(plural, &query)
            }
            (Method::GET, ["api", "v1", plural]) => {
                assert!(
                    *plural != "pods" || query.contains("fieldSelector=spec.nodeName%3Dnode-1"),
                    "{query}"
                );
                self.list(plural)
            }
            (Method::PATCH, ["api", "v1", "namespaces", namespace, "pods", name, "status"]) => {
                let patch = body.collect().await.unwrap().to_bytes();
                self.patch(&format!("{namespace}/{name}"), &serde_json::from_slice(&patch).unwrap())
            }
            (method, path) => panic!("{method} {path:?} is not a request that the node role should make"),
        }
    }

    fn list(&self, plural: &str) -> Response<Body> {
        let state = self.0.state.lock().unwrap();
        let items: Vec<_> = state
            .objects
            .iter()
            .filter(|((of, _), _)| of == plural)
            .map(|(_, object)| object.clone())
            .collect();
        let version = state.changes.len().to_string();
        reply(
            StatusCode::OK,
            &json!({"kind": "List", "metadata": {"resourceVersion": version}, "items": items}),
        )
    }

    fn watch(&self, plural: &str, query: &str) -> Response<Body> {
        let from = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion=")).unwrap();
        let start: usize = from.parse().unwrap();
        let (this, plural) = (self.clone(), plural.to_owned());
        let changed = self.0.version.subscribe();
        let lines = futures_util::stream::unfold((start, changed), move |(at, mut changed)| {
            let (this, plural) = (this.clone(), plural.clone());
            async move {
                loop {
                    changed.borrow_and_update();
                    let fresh = this.0.state.lock().unwrap().changes[at..].to_vec();
                    if !fresh.is_empty() {
                        let text: String = fresh
                            .iter()
                            .filter(|(of, _)| *of == plural)
                            .map(|(_, event)| format!("{event}\n"))
                            .collect();
                        return Some((text, (at + fresh.len(), changed)));
                    }
                    changed.changed().await.ok()?;
                }
            }
        });
        let frames = lines.map(|text| Ok(Frame::data(Bytes::from(text))));
        Response::new(StreamBody::new(frames).boxed_unsync())
    }

    fn patch(&self, name: &str, patch: &Value) -> Response<Body> {
        if let Some(status) = self.0.state.lock().unwrap().refuse_patches {
            let status = StatusCode::from_u16(status).unwrap();
            let body = json!({"kind": "Status", "status": "Failure", "code": status.as_u16(),
                              "reason": "Forbidden", "message": "pods/status is forbidden"});
            return reply(status, &body);
        }
        let known = self.0.state.lock().unwrap().objects.get(&("pods".to_owned(), name.to_owned())).cloned();
        let Some(mut pod) = known else {
            let body = json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": "gone"});
            return reply(StatusCode::NOT_FOUND, &body);
        };
        assert_eq!(
            patch["metadata"]["uid"], pod["metadata"]["uid"],
            "a patch is meant for one pod, not for a name"
        );
        let before = pod.clone();
        for (key, value) in patch["metadata"]["annotations"].as_object().unwrap() {
            if value.is_null() {
                pod["metadata"]["annotations"].as_object_mut().map(|all| all.remove(key));
            } else {
                pod["metadata"]["annotations"][key] = value.clone();
            }
        }
        // As in the real one, a patch that changes nothing is no change.
        if pod != before {
            self.put("pods", pod.clone());
        }
        reply(StatusCode::OK, &pod)
    }
}

fn key(object: &Value) -> String {
    let name = object["metadata"]["name"].as_str().unwrap();
    object["metadata"]["namespace"]
        .as_str()
        .map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"))
}

fn reply(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Full::from(body.to_string()).boxed_unsync());
    *response.status_mut() = status;
    response
}

/// A namespace with this value of the mode label.
pub(crate) fn namespace(name: &str, mode: Option<&str>) -> Value {
    let labels = mode.map_or_else(|| json!({}), |mode| json!({"istio.io/dataplane-mode": mode}));
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A running pod of `sample` on the node; without an address it is still being made.
pub(crate) fn pod(name: &str, ip: Option<&str>) -> Value {
    let status = ip.map_or_else(
        || json!({"phase": "Pending"}),
        |ip| json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}),
    );
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "sample", "uid": format!("uid-{name}"), "labels": {}, "annotations": {}},
        "spec": {"nodeName": "node-1", "serviceAccountName": "sa", "containers": []},
        "status": status,
    })
}
