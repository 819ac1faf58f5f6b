//! `isthmus agent`: the data plane of one node.

use std::sync::Arc;

use isthmus_admin::logging::Logging;
use isthmus_admin::server::Admin;
use isthmus_control::local::LocalConfig;
use isthmus_control::xds::{self, Rejections};
use isthmus_identity::Manager;
use isthmus_rt::drain::{self, Watch};
use isthmus_rt::log::Handle;
use isthmus_rt::metrics::Registry;
use isthmus_rt::ready::Readiness;
use isthmus_rt::task::Tasks;
use isthmus_state::{Batch, State};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::RunError;
use super::http::{Common, Endpoint};
use super::signal::{Drained, Signals};
use crate::config::agent::AgentConfig;
use crate::runtime;
use crate::wiring::config_dump::{self, Live};
use crate::wiring::discovery::Discovery;
use crate::wiring::pods::Pods;
use crate::wiring::proxy_context::{self, proxy_context};
use crate::wiring::{agent_pod, control, metrics, trust};

/// Runs the role.
pub(crate) fn run(config: AgentConfig, log: Handle) -> Result<(), RunError> {
    isthmus_identity::install_crypto_provider();
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    if let Err(error) = isthmus_sys::limits::raise_nofile() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let data = runtime::data(config.threads).map_err(RunError::os("data runtime"))?;
    let own = runtime::control().map_err(RunError::os("control runtime"))?;
    let outcome = own.block_on(serve(config, log, &data));
    // Nothing of a connection may outlive the drain.
    data.shutdown_background();
    outcome
}

async fn serve(config: AgentConfig, log: Handle, data: &Runtime) -> Result<(), RunError> {
    let mut signals = Signals::install()?;
    let common = Common::bind(config.metrics_address(), config.readiness_address()).await?;
    let mut admin = Endpoint::bind("admin", config.admin_address()).await?;
    if config.sockets.ipv6 {
        admin = admin.with_ipv6_loopback(config.ports.admin).await;
    }
    let (registry, readiness) = (Registry::default(), Readiness::default());
    let tasks = Tasks::new("agent");
    let (drain, watch) = drain::channel();
    let (served, served_watch) = drain::channel();

    let mesh = Mesh::start(&config, Holds::Node, &registry, &readiness, &tasks, &watch)?;
    let shared = proxy_context(&config, mesh.state.clone(), mesh.certs.clone(), &registry);
    tasks.spawn("metric series", Arc::clone(&shared.metrics).expire(mesh.state.clone()));
    let pods = Pods::new(Arc::clone(&shared), &config, &registry, watch.clone());
    if let Some(dns) = pods.dns_metrics() {
        tasks.spawn("DNS metric series", dns.expire(mesh.state.clone()));
    }
    let (quit, mut asked) = mpsc::channel(1);
    metrics::process(&registry, &log, data.handle());
    metrics::build(&registry, config_dump::istio_version(&config.place));
    let live = Live::new(&config, mesh.state, mesh.certs, mesh.rejections, Some(Arc::clone(&pods)));
    common.serve(&registry, &readiness, &tasks, &served_watch);
    admin.serve(Admin::new(live, Logging::new(log), quit, config.ports), &tasks, &served_watch);
    // Those that serve hold it now: ours would be one more to wait for.
    drop(served_watch);

    let data_tasks = Tasks::new("data");
    let _own = {
        let _inside = data.enter();
        let own = agent_pod::start(&config, shared, watch.clone());
        let zds = zds(&config, Arc::clone(&pods), &registry, readiness.clone(), watch);
        data_tasks.spawn("zds", zds);
        own
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = %config.place.node, network = %config.place.network, "agent started");
    let why = signals.stop(&mut asked).await;
    if signals.drain(drain, config.drain, why).await == Drained::Done {
        served.kill().await;
    }
    Ok(())
}

/// Takes pods from the node role, once the mesh is known: a pod served earlier would refuse what it should carry.
fn zds(
    config: &AgentConfig,
    pods: Arc<Pods>,
    registry: &Registry,
    readiness: Readiness,
    drain: Watch,
) -> impl Future<Output = ()> + use<> {
    let settings = isthmus_inpod::Config { uds: config.inpod_uds.clone() };
    let metrics = isthmus_inpod::Metrics::register(registry);
    // Not ready before the first snapshot, even while the mesh is still unknown.
    let unserved = readiness.block(isthmus_inpod::manager::READINESS);
    async move {
        tokio::select! {
            () = readiness.released(STATE) => {}
            () = drain.graceful() => {
                pods.close();
                return;
            }
        }
        let runtime = Arc::clone(&pods);
        let serving = isthmus_inpod::run(settings, runtime, pods.table(), readiness, metrics, drain);
        let mut serving = std::pin::pin!(serving);
        // The first poll takes a guard of its own; only then may ours go.
        let first =
            std::future::poll_fn(|cx| std::task::Poll::Ready(serving.as_mut().poll(cx).is_ready())).await;
        drop(unserved);
        if !first {
            serving.await;
        }
        pods.close();
    }
}

/// The parts that follow the control plane; shared with the gateway role.
pub(super) struct Mesh {
    pub(super) state: State,
    pub(super) certs: Manager,
    pub(super) rejections: Rejections,
}

/// Under this name readiness waits for the first push of every type.
pub(crate) const STATE: &str = "state manager";

/// Whose certificates a role holds ahead of their need.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// Those of its node's pods.
    Node,
    /// Only what it asks for itself: the CA would refuse it anybody else's.
    Own,
}

impl Mesh {
    pub(super) fn start(
        config: &AgentConfig,
        holds: Holds,
        registry: &Registry,
        readiness: &Readiness,
        tasks: &Tasks,
        drain: &Watch,
    ) -> Result<Self, RunError> {
        let state = proxy_context::state(config);
        let trust = trust::start(&config.trust, &state, registry, tasks);
        let certs = control::manager(config, trust, registry, tasks)?;
        let rejections = Rejections::default();
        let ahead = (holds == Holds::Node).then(|| certs.clone());
        let discovery = Arc::new(Discovery::new(state.clone(), config.place.node.clone(), ahead));
        discovery.apply(batch(&config.local));
        if let Some(plane) = &config.xds {
            let settings = xds::Config {
                server: control::server(plane, &config.place, config.trust.key_exchange),
                node: control::node(&config.place),
                rejections: rejections.clone(),
            };
            settings.server.check()?;
            let metrics = isthmus_control::metrics::Metrics::register(registry);
            tasks.spawn("xds", xds::run(settings, discovery, readiness.block(STATE), metrics, drain.clone()));
        }
        Ok(Self { state, certs, rejections })
    }
}

/// The static configuration as one push.
fn batch(local: &LocalConfig) -> Batch {
    Batch {
        upsert_workloads: local.workloads.clone(),
        upsert_services: local.services.clone(),
        upsert_policies: local.policies.iter().map(|policy| (policy.key(), policy.clone())).collect(),
        ..Batch::default()
    }
}
