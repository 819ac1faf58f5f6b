//! `isthmus node`: enrols the pods of one node.

use std::path::PathBuf;
use std::sync::Arc;

use isthmus_node::capture::Uncapturable;
use isthmus_node::config::{KubeletUid, ProbeAddresses};
use isthmus_node::metrics::CaptureStatus;
use isthmus_node::{ApiServer, Config, Dependencies, HostKernel, StartError};
use isthmus_rt::drain;
use isthmus_rt::log::Handle;
use isthmus_rt::metrics::Registry;
use isthmus_rt::metrics::runtime::Runtime;
use isthmus_rt::ready::Readiness;
use isthmus_rt::task::Tasks;
use tokio::sync::mpsc;

use super::RunError;
use super::http::Common;
use super::shutdown::Signals;
use crate::config::node::NodeConfig;
use crate::runtime;
use crate::wiring::metrics;

/// Under this name readiness waits for the first snapshot of the node's pods.
pub(super) const READY: &str = "node";

/// Runs the role.
pub(crate) fn run(config: NodeConfig, log: Handle) -> Result<(), RunError> {
    isthmus_identity::install_crypto_provider();
    let runtime = runtime::node().map_err(RunError::os("runtime"))?;
    runtime.block_on(serve(config, log))
}

async fn serve(config: NodeConfig, log: Handle) -> Result<(), RunError> {
    let mut signals = Signals::install()?;
    let common = Common::bind(config.metrics, config.ready).await?;
    let (registry, readiness) = (Registry::default(), Readiness::default());
    let tasks = Tasks::new("node endpoints");
    let (drain, watch) = drain::channel();
    metrics::process(&registry, &log, Runtime::new(tokio::runtime::Handle::current()));
    let node_metrics = isthmus_node::Metrics::register(&registry);
    let shown = Arc::clone(&node_metrics);
    let status = Box::new(move || status(&shown.captures()));
    common.serve_with_status(&registry, &readiness, status, (&tasks, &watch));

    let client = connect(config.kubeconfig.as_ref()).await?;
    let lines = isthmus_node::plugin_log::bind(&config.run_dir).map_err(RunError::Install)?;
    tasks.spawn("plugin log", isthmus_node::plugin_log::serve(lines, watch.clone()));
    let mut node = Node::start(config, client, node_metrics, &readiness, (&tasks, watch))?;
    let (_quit, mut never) = mpsc::channel(1);
    tokio::select! {
        why = signals.stop(&mut never) => {
            tracing::info!(why, "stopping; the rules of enrolled pods stay");
            drain.shutdown(std::time::Duration::from_secs(5)).await;
            Ok(())
        }
        error = node.ended() => Err(error),
    }
}

/// A client of the API server.
pub(super) async fn connect(kubeconfig: Option<&PathBuf>) -> Result<kube::Client, RunError> {
    let server = kubeconfig.cloned().map_or(ApiServer::InCluster, ApiServer::Kubeconfig);
    Ok(isthmus_node::connect(&server).await?)
}

/// The running node role.
pub(super) struct Node {
    stopped: mpsc::Receiver<Result<(), StartError>>,
    /// The host, for what is removed at the end.
    pub(super) kernel: Arc<HostKernel>,
}

impl Node {
    /// Starts it. Readiness waits for it under [`READY`].
    pub(super) fn start(
        config: NodeConfig,
        client: kube::Client,
        metrics: Arc<isthmus_node::Metrics>,
        readiness: &Readiness,
        (tasks, watch): (&Tasks, drain::Watch),
    ) -> Result<Self, RunError> {
        let settings = settings(config);
        let kernel = Arc::new(HostKernel::new(&settings)?);
        let dependencies = Dependencies { kernel: Arc::<HostKernel>::clone(&kernel), client, metrics };
        let ready = readiness.block(READY);
        let (stop, stopped) = mpsc::channel(1);
        tasks.spawn("node", async move {
            let ended = isthmus_node::run(settings, dependencies, ready, watch).await;
            // The receiver is dropped only when the process ends.
            let _ = stop.send(ended).await;
        });
        Ok(Self { stopped, kernel })
    }

    /// Resolves when it ends without being asked to.
    pub(super) async fn ended(&mut self) -> RunError {
        match self.stopped.recv().await {
            Some(Err(error)) => error.into(),
            _ => RunError::NodeEnded,
        }
    }
}

/// The pods of the mesh, and when each was last proved to be captured.
pub(super) fn status(captures: &[CaptureStatus]) -> serde_json::Value {
    let pod = |it: &CaptureStatus| {
        serde_json::json!({
            "namespace": it.pod.namespace.as_str(), "name": it.pod.name.as_str(), "uid": it.pod.uid.as_str(),
            "captured": it.captured, "proved_at": it.proved_at.map(isthmus_rt::log::timestamp),
        })
    };
    serde_json::json!({"pods": captures.iter().map(pod).collect::<Vec<_>>()})
}

fn settings(config: NodeConfig) -> Config {
    let host_netns = if config.host_netns_of_init {
        config.host_proc.join("1/ns/net")
    } else {
        "/proc/self/ns/net".into()
    };
    Config {
        node_name: config.node_name.into(),
        run_dir: config.run_dir,
        zds_socket: config.zds_socket,
        netns_dir: config.netns_dir,
        proc_dir: config.host_proc,
        host_netns,
        dns_capture: config.dns_capture,
        ipv6: config.ipv6,
        rules: config.rules,
        probes: ProbeAddresses { v4: config.probe_v4, v6: config.probe_v6 },
        kubelet: config.kubelet_uid.map_or(KubeletUid::Detect, KubeletUid::Fixed),
        uncapturable: if config.mark_uncapturable { Uncapturable::Mark } else { Uncapturable::Refuse },
        own_stack_classes: config.own_stack_classes,
        reconcile_on_start: config.reconcile_on_startup,
    }
}
