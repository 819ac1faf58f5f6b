//! An agent's ZDS side that notes what it does, connected to a scripted node role.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use isthmus_inpod::{Config, Metrics, Pod, PodRuntime, Pods, StartError, Stop};
use isthmus_kit::wait::eventually;
use isthmus_kit::zds::{ZdsPeer, ZdsPod, ZdsServer};
use isthmus_model::PodUid;
use isthmus_rt::BoxFuture;
use isthmus_rt::drain::{self, Drain};
use isthmus_rt::ready::Readiness;
use isthmus_rt::task::Tasks;
use tokio::sync::watch;

/// Notes what it is told, and fails starts on demand.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) log: watch::Sender<Vec<String>>,
    failing: Mutex<BTreeMap<String, String>>,
}

impl Recorder {
    pub(crate) fn note(&self, line: String) {
        self.log.send_modify(|log| log.push(line));
    }

    pub(crate) fn fail(&self, uid: &str, why: &str) {
        self.failing.lock().unwrap().insert(uid.into(), why.into());
    }

    pub(crate) fn heal(&self) {
        self.failing.lock().unwrap().clear();
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.log.borrow().clone()
    }
}

impl PodRuntime for Recorder {
    fn start(&self, pod: Pod) -> BoxFuture<'_, Result<(), StartError>> {
        let why = self.failing.lock().unwrap().get(pod.uid.as_str()).cloned();
        let what = if why.is_some() { "fail" } else { "start" };
        self.note(format!("{what} {} {}/{}", pod.uid, pod.info.namespace, pod.info.name));
        Box::pin(async move { why.map_or(Ok(()), |why| Err(StartError(why))) })
    }

    fn stop<'a>(&'a self, uid: &'a PodUid, how: Stop) -> BoxFuture<'a, ()> {
        self.note(format!("stop {uid} {how:?}"));
        Box::pin(async {})
    }
}

pub(crate) struct World {
    pub(crate) server: ZdsServer,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) pods: Pods,
    pub(crate) ready: Readiness,
    registry: isthmus_rt::metrics::Registry,
    pub(crate) drain: Drain,
    pub(crate) tasks: Tasks,
    _dir: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let uds: PathBuf = dir.path().join("ztunnel.sock");
        let server = ZdsServer::bind(&uds).unwrap();
        let (drain, watch) = drain::channel();
        let world = Self {
            server,
            recorder: Arc::default(),
            pods: Pods::default(),
            ready: Readiness::default(),
            registry: isthmus_rt::metrics::Registry::default(),
            drain,
            tasks: Tasks::new("test"),
            _dir: dir,
        };
        let runtime = Arc::clone(&world.recorder) as Arc<dyn PodRuntime>;
        let metrics = Metrics::register(&world.registry);
        let (pods, ready) = (world.pods.clone(), world.ready.clone());
        world.tasks.spawn("zds", isthmus_inpod::run(Config { uds }, runtime, pods, ready, metrics, watch));
        world
    }

    /// A connection whose snapshot names the given pods.
    pub(crate) async fn snapshot(&mut self, uids: &[&str]) -> ZdsPeer {
        let peer = self.server.accept().await.unwrap();
        for uid in uids {
            assert_eq!(peer.add(&pod(uid), here()).await.unwrap(), None);
        }
        assert_eq!(peer.snapshot_sent().await.unwrap(), None);
        peer
    }

    /// Waits until readiness is as wanted.
    pub(crate) async fn until_ready(&self, wanted: bool) {
        eventually(
            || self.ready.pending().is_empty() == wanted,
            || format!("readiness does not become {wanted}"),
        )
        .await;
    }

    pub(crate) fn metric(&self, name: &str) -> String {
        let text = self.registry.encode().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or("absent").to_owned()
    }
}

pub(crate) fn pod(uid: &str) -> ZdsPod<'_> {
    ZdsPod { uid, name: "web-1", namespace: "sample", service_account: "web" }
}

pub(crate) fn here() -> File {
    File::open("/proc/self/ns/net").unwrap()
}
