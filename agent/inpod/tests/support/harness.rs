//! The ZDS client with a recording pod runtime, connected to a scripted node role.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use isthmus_inpod::{Blame, Config, EnrolledPod, Metrics, PodList, PodRuntime, StartError, StopMode};
use isthmus_kit::wait::eventually;
use isthmus_kit::zds::{ZdsPeer, ZdsPod, ZdsServer};
use isthmus_model::PodUid;
use isthmus_rt::BoxFuture;
use isthmus_rt::drain::{self, Drain};
use isthmus_rt::ready::Readiness;
use isthmus_rt::task::Tasks;
use tokio::sync::watch;

/// Records every start and stop, and fails starts on demand.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) log: watch::Sender<Vec<String>>,
    failing: Mutex<BTreeMap<String, String>>,
}

impl Recorder {
    pub(crate) fn record(&self, line: String) {
        self.log.send_modify(|log| log.push(line));
    }

    pub(crate) fn fail(&self, uid: &str, error: &str) {
        self.failing.lock().unwrap().insert(uid.into(), error.into());
    }

    pub(crate) fn succeed(&self) {
        self.failing.lock().unwrap().clear();
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.log.borrow().clone()
    }
}

impl PodRuntime for Recorder {
    fn start(&self, pod: EnrolledPod) -> BoxFuture<'_, Result<(), StartError>> {
        let pod = pod.pod;
        let error = self.failing.lock().unwrap().get(pod.uid.as_str()).cloned();
        let what = if error.is_some() { "fail" } else { "start" };
        self.record(format!("{what} {} {pod}", pod.uid));
        let component = "listeners";
        let whose = if pod.uid.as_str() == "unable" { Blame::Process } else { Blame::Pod };
        Box::pin(async move {
            error.map_or(Ok(()), |error| Err(StartError::Component { whose, component, cause: error.into() }))
        })
    }

    fn stop<'a>(&'a self, uid: &'a PodUid, mode: StopMode) -> BoxFuture<'a, ()> {
        self.record(format!("stop {uid} {mode:?}"));
        Box::pin(async {})
    }
}

pub(crate) struct ZdsHarness {
    pub(crate) server: ZdsServer,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) pods: PodList,
    pub(crate) ready: Readiness,
    registry: isthmus_rt::metrics::Registry,
    pub(crate) drain: Drain,
    pub(crate) tasks: Tasks,
    _dir: tempfile::TempDir,
}

impl ZdsHarness {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let uds: PathBuf = dir.path().join("ztunnel.sock");
        let server = ZdsServer::bind(&uds).unwrap();
        let (drain, watch) = drain::channel();
        let harness = Self {
            server,
            recorder: Arc::default(),
            pods: PodList::default(),
            ready: Readiness::default(),
            registry: isthmus_rt::metrics::Registry::default(),
            drain,
            tasks: Tasks::new("test"),
            _dir: dir,
        };
        let runtime = Arc::clone(&harness.recorder) as Arc<dyn PodRuntime>;
        let metrics = Metrics::register(&harness.registry);
        let (pods, ready) = (harness.pods.clone(), harness.ready.clone());
        harness.tasks.spawn("zds", isthmus_inpod::run(Config { uds }, runtime, pods, ready, metrics, watch));
        harness
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

    /// Waits until the agent is ready, or is not.
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
