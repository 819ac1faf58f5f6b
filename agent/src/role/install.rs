//! `isthmus install-cni`: installs the CNI plugin on one node and, in ambient mode, is its node role too. The plugin is
//! installed when the node role serves, so that no container runtime calls it before it has an answer.

use std::sync::Arc;
use std::time::Duration;

use isthmus_install::End;
use isthmus_rt::drain::{self, Drain};
use isthmus_rt::log::Handle;
use isthmus_rt::metrics::Registry;
use isthmus_rt::metrics::runtime::Runtime;
use isthmus_rt::ready::Readiness;
use isthmus_rt::task::Tasks;
use tokio::sync::mpsc;

use super::RunError;
use super::http::Common;
use super::node::{self, Node};
use super::shutdown::Signals;
use crate::config::install::InstallerConfig;
use crate::runtime;
use crate::wiring::metrics;

/// How long the parts may take to stop.
const STOP: Duration = Duration::from_secs(5);

/// Runs the role.
pub(crate) fn run(config: InstallerConfig, log: Handle) -> Result<(), RunError> {
    isthmus_identity::install_crypto_provider();
    let runtime = runtime::node().map_err(RunError::os("runtime"))?;
    runtime.block_on(serve(config, log))
}

async fn serve(config: InstallerConfig, log: Handle) -> Result<(), RunError> {
    let mut signals = Signals::install()?;
    let common = Common::bind(config.metrics, config.ready).await?;
    let (registry, readiness) = (Registry::default(), Readiness::default());
    let tasks = Tasks::new("installer endpoints");
    let (stop, watch) = drain::channel();
    metrics::process(&registry, &log, Runtime::new(tokio::runtime::Handle::current()));
    let (node_metrics, install_metrics) =
        (isthmus_node::Metrics::register(&registry), isthmus_install::Metrics::register(&registry));
    let shown = Arc::clone(&node_metrics);
    let status = Box::new(move || node::status(&shown.captures()));
    let starting = readiness.block(isthmus_install::READY);
    common.serve_with_status(&registry, &readiness, status, (&tasks, &watch));

    let client = node::connect(config.kubeconfig.as_ref()).await?;
    let lines = isthmus_node::plugin_log::bind(&config.install.run_dir).map_err(RunError::Install)?;
    tasks.spawn("plugin log", isthmus_node::plugin_log::serve(lines, watch.clone()));
    let mut node = match config.node.clone() {
        Some(it) => Some(Node::start(it, client.clone(), node_metrics, &readiness, (&tasks, watch.clone()))?),
        None => {
            tracing::warn!(
                "AMBIENT_ENABLED is false: the CNI plugin is installed and lets every pod pass; redirection for sidecars is \
                 not part of it, so injected pods need an init container of their own",
            );
            None
        }
    };
    // A drain waits for whoever watches it.
    drop(watch);
    let (end_install, install_watch) = drain::channel();
    let (failed, mut failure) = mpsc::channel(1);
    let installer = {
        let (install, client, readiness) = (config.install.clone(), client.clone(), readiness.clone());
        async move {
            tokio::select! {
                () = readiness.released(node::READY) => {}
                () = install_watch.graceful() => return,
            }
            let ready = (readiness, starting);
            let run = isthmus_install::run(install, Some(client), install_metrics, ready, install_watch);
            // The receiver is dropped only when the process ends.
            if let Err(error) = run.await {
                let _ = failed.send(error).await;
            }
        }
    };
    tasks.spawn("installer", installer);

    let (_quit, mut never) = mpsc::channel(1);
    let node_ended = async {
        match &mut node {
            Some(node) => node.ended().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        why = signals.stop(&mut never) => tracing::info!(why, "stopping"),
        error = node_ended => return Err(error),
        Some(error) = failure.recv() => return Err(RunError::Install(error)),
    }
    end(config, &client, node, (end_install, stop)).await;
    Ok(())
}

/// Stops the installer first, which would repair what is removed now, and the node role last: until the entry is out,
/// container runtimes ask it.
async fn end(
    config: InstallerConfig,
    client: &kube::Client,
    node: Option<Node>,
    (install, rest): (Drain, Drain),
) {
    install.shutdown(STOP).await;
    let end = isthmus_install::finish(config.install, Some(client)).await;
    rest.shutdown(STOP).await;
    if let (End::Remove(_), Some(node)) = (end, node) {
        let removed = tokio::task::spawn_blocking(move || node.kernel.remove_host()).await;
        match removed {
            Ok(Ok(0)) => tracing::info!("rules of the host removed"),
            Ok(Ok(pods)) => tracing::warn!(
                pods,
                "pods of this node are still in the mesh; their rules and the host's rules for their probes stay",
            ),
            Ok(Err(error)) => tracing::error!(%error, "rules of the host not removed"),
            Err(error) => tracing::error!(%error, "rules of the host not removed"),
        }
    }
}
