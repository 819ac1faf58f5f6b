//! The folders of a host, an image and a pod, an API server that answers from a table, and the installer that runs on
//! them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Ready;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use isthmus_install::conflist::{Kind, Layout};
use isthmus_install::entry::Entry;
use isthmus_install::{Config, End, Metrics, READY};
use isthmus_rt::drain::{self, Drain};
use isthmus_rt::metrics::Registry;
use isthmus_rt::ready::Readiness;
use isthmus_rt::task::Tasks;
use serde_json::Value;

pub(crate) const CALICO: &str = "10-calico.conflist";
pub(crate) const LIST: &str =
    r#"{"cniVersion":"1.0.0","name":"k8s","plugins":[{"type":"calico"},{"type":"portmap"}]}"#;

/// Status and body by method and path; anything else is not found.
pub(crate) type Answers = Arc<Mutex<BTreeMap<String, (u16, Value)>>>;

/// The folders.
pub(crate) struct Tree {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: Config,
    pub(crate) answers: Answers,
}

/// A running installer.
pub(crate) struct Running {
    drain: Drain,
    tasks: Tasks,
    pub(crate) readiness: Readiness,
    registry: Registry,
}

impl Tree {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["bin", "net.d", "account"] {
            std::fs::create_dir(at(folder)).unwrap();
        }
        std::fs::write(at("isthmus-cni"), "binary 1").unwrap();
        std::fs::set_permissions(at("isthmus-cni"), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(at("account/token"), "mounted-1").unwrap();
        std::fs::write(at("account/ca.crt"), "roots").unwrap();
        let config = Config {
            binary: at("isthmus-cni"),
            bin_dir: at("bin"),
            net_dir: at("net.d"),
            run_dir: at("run"),
            service_account_dir: at("account"),
            layout: Layout { name: None, kind: Kind::Chained, owned: "02-istio-cni.conflist".to_owned() },
            conflist_mode: 0o600,
            kubeconfig_mode: 0o600,
            entry: Entry { ambient_enabled: true, log_level: "info".to_owned(), ..Entry::default() },
            server: "https://10.96.0.1:443".to_owned(),
            roots: Some(at("account/ca.crt")),
            plugin_account: None,
            namespace: "istio-system".to_owned(),
            daemon_set: "istio-cni-node".to_owned(),
            node: "n1".to_owned(),
            always_remove: false,
        };
        Self { dir, config, answers: Answers::default() }
    }

    pub(crate) fn client(&self) -> kube::Client {
        kube::Client::new(Api(Arc::clone(&self.answers)), "default")
    }

    pub(crate) fn answer(&self, request: &str, status: u16, body: Value) {
        self.answers.lock().unwrap().insert(request.to_owned(), (status, body));
    }

    pub(crate) fn start(&self) -> Running {
        let (drain, watch) = drain::channel();
        let (readiness, registry) = (Readiness::default(), Registry::default());
        let ready = (readiness.clone(), readiness.block(READY));
        let metrics = Metrics::register(&registry);
        let run = isthmus_install::run(self.config.clone(), Some(self.client()), metrics, ready, watch);
        let tasks = Tasks::new("test");
        tasks.spawn("installer", async move { run.await.unwrap() });
        Running { drain, tasks, readiness, registry }
    }

    pub(crate) async fn finish(&self) -> End {
        isthmus_install::finish(self.config.clone(), Some(&self.client())).await
    }

    /// As the cluster's CNI writes it: whole, by a rename.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let (next, path) = (self.dir.path().join("next"), self.net(name));
        std::fs::write(&next, text).unwrap();
        std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::rename(next, path).unwrap();
    }

    pub(crate) fn net(&self, name: &str) -> PathBuf {
        self.config.net_dir.join(name)
    }

    pub(crate) fn binary(&self) -> PathBuf {
        self.config.bin_dir.join("istio-cni")
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.config.run_dir.join("istio-cni-kubeconfig")
    }

    pub(crate) fn token(&self) -> String {
        let text = std::fs::read_to_string(self.kubeconfig()).unwrap_or_default();
        let line = text.lines().find_map(|line| line.trim().strip_prefix("token: ")).unwrap_or_default();
        line.trim_matches(['"', '\'']).to_owned()
    }

    /// The types of the plugins in a list.
    pub(crate) fn types(&self, name: &str) -> Vec<String> {
        let text = std::fs::read(self.net(name)).unwrap_or_default();
        let list: Value = serde_json::from_slice(&text).unwrap_or_default();
        let plugins = list["plugins"].as_array().cloned().unwrap_or_default();
        plugins.iter().map(|one| one["type"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path().join(folder)).into_iter().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub(crate) fn mode(path: &std::path::Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }
}

impl Running {
    pub(crate) fn is_ready(&self) -> bool {
        self.readiness.pending().is_empty()
    }

    pub(crate) async fn ready(&self) {
        self.readiness.released(READY).await;
    }

    /// The value of a series, 0 without one.
    pub(crate) fn metric(&self, series: &str) -> u64 {
        let text = self.registry.encode().unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }

    pub(crate) async fn stop(self) {
        let stopped = self.drain.shutdown(std::time::Duration::from_secs(5)).await;
        self.tasks.wait().await;
        assert_eq!(stopped, drain::Outcome::Drained);
    }
}

/// The API server.
#[derive(Clone)]
struct Api(Answers);

impl tower_service::Service<Request<kube::client::Body>> for Api {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let asked = format!("{} {}", request.method(), request.uri().path());
        let answers = self.0.lock().unwrap();
        let status = |code: u16| {
            serde_json::json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no",
                "reason": "", "code": code,
            })
        };
        let (code, body) = answers.get(&asked).cloned().unwrap_or((404, Value::Null));
        let body = if body.is_null() { status(code) } else { body };
        let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
        *response.status_mut() = http::StatusCode::from_u16(code).unwrap();
        std::future::ready(Ok(response))
    }
}
