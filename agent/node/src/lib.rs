//! The node role: it watches the pods of one node and their namespaces, programs the network namespaces of those that
//! belong to the mesh, hands them to the data plane over ZDS, and answers the CNI plugin. It must not know how the data
//! plane works; the two meet on the ZDS socket only.

pub mod config;
pub mod globals;
pub mod kernel;
mod kube;
pub mod mesh;
mod metrics;
mod netns_find;
mod node;
pub mod plan;
pub mod plugin_server;
pub mod pod;
pub mod reconcile;
pub mod rules;
mod sockets;
pub mod view;
pub mod zds;

use std::sync::Arc;
use std::time::Duration;

use isthmus_rt::drain::Watch;
use isthmus_rt::ready::BlockReady;
use isthmus_rt::task::Tasks;

pub use crate::config::Config;
pub use crate::kernel::{Host, Kernel};
pub use crate::kube::{ApiServer, ConnectError, connect};
pub use crate::metrics::Metrics;
pub use crate::netns_find::Wanted;

use crate::kernel::KernelError;
use crate::mesh::Mesh;
use crate::node::{Node, Requests};
use crate::zds::hub::Hub;

/// Attempts to write the host's rules before the start fails, and the time between them.
const HOST_RULES: (u32, Duration) = (10, Duration::from_secs(2));

/// What the node role works with.
pub struct Deps {
    /// The kernel; [`Host`] but in tests.
    pub kernel: Arc<dyn Kernel>,
    /// The API server.
    pub client: ::kube::Client,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
}

/// Why the node role does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A socket cannot be opened.
    #[error("socket {0}")]
    Socket(#[from] std::io::Error),
    /// The host's rules cannot be written.
    #[error(transparent)]
    HostRules(KernelError),
}

/// Runs the node role until the drain begins. `ready` is released when the pods that were already enrolled are taken over
/// and the ZDS socket is served. What is programmed stays when this ends: pods remain captured, closed without an agent.
///
/// # Errors
/// When a socket cannot be opened or the host's rules cannot be written.
pub async fn run(config: Config, deps: Deps, ready: BlockReady, drain: Watch) -> Result<(), StartError> {
    let Deps { kernel, client, metrics } = deps;
    let tasks = Tasks::new("node");
    let hub = Hub::new(Arc::clone(&metrics));
    let zds = zds::server::bind(&config.zds_socket)?;
    let plugin = plugin_server::bind(&config.run_dir)?;
    let host_rules = apply_host(&kernel);
    tokio::select! {
        applied = host_rules => applied.map_err(StartError::HostRules)?,
        () = drain.graceful() => return Ok(()),
    }

    let (requests, receiver) = Requests::new();
    let served = plugin_server::serve(plugin, Arc::new(requests), Arc::clone(&metrics), drain.clone());
    tasks.spawn("plugin server", served);
    let mesh = Mesh::new(
        kernel,
        Arc::new(hub.clone()),
        Arc::new(kube::Annotations(client.clone())),
        config.dns_capture,
        config.ipv6,
    );
    let events = kube::events(&client, &config.node_name);
    let mut node = Node::new(events, receiver, Arc::new(mesh), config.rules, metrics);
    tokio::select! {
        () = node.start(config.reconcile_on_start) => {}
        () = drain.graceful() => return Ok(()),
    }
    tasks.spawn("zds server", zds::server::serve(zds, hub.clone(), drain.clone()));
    drop(ready);
    tracing::info!(node = %config.node_name, "the node role is ready");
    node.run(|| hub.synced(), drain.clone()).await;
    tokio::select! {
        () = tasks.wait() => {}
        () = drain.forced() => {}
    }
    Ok(())
}

async fn apply_host(kernel: &Arc<dyn Kernel>) -> Result<(), KernelError> {
    let (attempts, pause) = HOST_RULES;
    for attempt in 1.. {
        let kernel = Arc::clone(kernel);
        let applied = tokio::task::spawn_blocking(move || kernel.apply_host())
            .await
            .unwrap_or_else(|error| Err(KernelError::failed("host rules")(error)));
        match applied {
            Err(error) if attempt < attempts => {
                tracing::warn!(error = %error, attempt, "the host's rules will be tried again");
                tokio::time::sleep(pause).await;
            }
            done => return done,
        }
    }
    Ok(())
}
