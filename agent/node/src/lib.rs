//! The node role (istio-cni's part): it watches the pods of one node and all namespaces, writes packet rules into the
//! network namespaces of pods that belong to the mesh, passes the pods to the agent over ZDS, and answers the CNI
//! plugin. It must not know how the agent serves a pod; the two meet on the ZDS socket only.

pub mod capture;
mod capture_watch;
mod cgroup;
pub mod config;
mod controller;
pub mod enroller;
pub mod global_services;
pub mod kernel;
mod kube;
pub mod metrics;
mod netns_lookup;
pub mod object_cache;
pub mod plan;
pub mod plugin_log;
pub mod plugin_server;
pub mod pod;
pub mod rules;
pub mod work_queue;
pub mod zds;

use std::sync::Arc;
use std::time::Duration;

use isthmus_rt::drain::Watch;
use isthmus_rt::ready::BlockReady;
use isthmus_rt::task::Tasks;

pub use crate::config::Config;
pub use crate::kernel::Kernel;
pub use crate::kernel::host::HostKernel;
pub use crate::kube::{ApiServer, ConnectError, connect};
pub use crate::metrics::Metrics;
pub use crate::netns_lookup::NetnsQuery;

use crate::controller::{AddRequests, Controller};
use crate::enroller::{Defaults, Enroller};
use crate::kernel::KernelError;
use crate::zds::registry::AgentRegistry;

/// Attempts to write the host's rules before the start fails, and the delay between them.
const HOST_RULES: (u32, Duration) = (10, Duration::from_secs(2));

/// What the node role acts on.
pub struct Dependencies {
    /// The kernel; [`HostKernel`] except in tests.
    pub kernel: Arc<dyn Kernel>,
    /// Client of the API server.
    pub client: ::kube::Client,
    /// Metrics of the role.
    pub metrics: Arc<Metrics>,
}

/// Why the node role does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The ZDS socket or the CNI plugin's socket cannot be opened.
    #[error("socket {0}")]
    Socket(#[from] std::io::Error),
    /// The host's rules cannot be written: a capability (`CAP_NET_ADMIN`) or nftables support of the kernel is missing.
    #[error(transparent)]
    HostRules(KernelError),
}

/// Runs the node role until the drain begins. `ready` is released when the pods that were already enrolled are adopted
/// and the ZDS socket is served. Rules stay in place when this ends: enrolled pods remain redirected, and fail closed
/// without an agent.
///
/// # Errors
/// When a socket cannot be opened or the host's rules cannot be written.
pub async fn run(
    config: Config,
    dependencies: Dependencies,
    ready: BlockReady,
    drain: Watch,
) -> Result<(), StartError> {
    let Dependencies { kernel, client, metrics } = dependencies;
    let tasks = Tasks::new("node");
    let agents = AgentRegistry::new(Arc::clone(&metrics));
    let zds = zds::server::bind(&config.zds_socket)?;
    let plugin = plugin_server::bind(&config.run_dir)?;
    let host_rules = apply_host_rules(&kernel);
    tokio::select! {
        applied = host_rules => applied.map_err(StartError::HostRules)?,
        () = drain.graceful() => return Ok(()),
    }

    let (requests, receiver) = AddRequests::new();
    let served = plugin_server::serve(plugin, Arc::new(requests), Arc::clone(&metrics), drain.clone());
    tasks.spawn("plugin server", served);
    let enroller = Enroller::new(
        kernel,
        Arc::new(agents.clone()),
        Arc::new(kube::AnnotationClient(client.clone())),
        Defaults {
            dns_capture: config.dns_capture,
            ipv6: config.ipv6,
            uncapturable: config.uncapturable,
            own_stack_classes: config.own_stack_classes,
        },
        Arc::clone(&metrics),
    );
    let events = kube::events(&client, &config.node_name);
    let enroller = Arc::new(enroller);
    let mut controller = Controller::new(events, receiver, Arc::clone(&enroller), config.rules, metrics);
    tokio::select! {
        () = controller.start(config.reconcile_on_start) => {}
        () = drain.graceful() => return Ok(()),
    }
    tasks.spawn("zds server", zds::server::serve(zds, agents.clone(), drain.clone()));
    let (lost, losses) = tokio::sync::mpsc::unbounded_channel();
    tasks.spawn("capture watch", capture_watch::run(enroller, lost, drain.clone()));
    drop(ready);
    tracing::info!(node = %config.node_name, "node role ready");
    controller.run(|| agents.synced(), losses, drain.clone()).await;
    tokio::select! {
        () = tasks.wait() => {}
        () = drain.forced() => {}
    }
    Ok(())
}

async fn apply_host_rules(kernel: &Arc<dyn Kernel>) -> Result<(), KernelError> {
    let (attempts, pause) = HOST_RULES;
    for attempt in 1.. {
        let kernel = Arc::clone(kernel);
        let applied = tokio::task::spawn_blocking(move || kernel.apply_host())
            .await
            .unwrap_or_else(|error| Err(KernelError::failed("host rules")(error)));
        match applied {
            Err(error) if attempt < attempts => {
                tracing::warn!(%error, attempt, attempts, retry_in = ?pause, "host rules not written");
                tokio::time::sleep(pause).await;
            }
            done => return done,
        }
    }
    Ok(())
}
