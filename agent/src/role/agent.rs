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
use isthmus_rt::metrics::runtime::Runtime;
use isthmus_rt::ready::Readiness;
use isthmus_rt::task::Tasks;
use isthmus_state::{Batch, State};
use tokio::sync::mpsc;

use super::RunError;
use super::handover::Handover;
use super::http::{Common, Endpoint};
use super::shutdown::{Drained, Signals};
use crate::config::agent::AgentConfig;
use crate::heap;
use crate::runtime::{self, DataRuntime};
use crate::wiring::config_dump::{self, ConfigDumpSource};
use crate::wiring::control::Identities;
use crate::wiring::discovery::Discovery;
use crate::wiring::pods::Pods;
use crate::wiring::proxy_context::{self, proxy_context};
use crate::wiring::{agent_pod, control, descriptors, metrics, trust};

/// Runs the role.
pub(crate) fn run(config: AgentConfig, log: Handle) -> Result<(), RunError> {
    isthmus_identity::install_crypto_provider();
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    if let Err(error) = isthmus_sys::limits::raise_nofile() {
        tracing::warn!(%error, "cannot raise the limit of open files (RLIMIT_NOFILE), it stays unchanged");
    }
    let data = DataRuntime::start(config.threads).map_err(RunError::os("data runtime"))?;
    let own = runtime::control().map_err(RunError::os("control runtime"))?;
    let outcome = own.block_on(serve(config, log, &data));
    // No connection outlives the drain.
    data.shutdown();
    outcome
}

async fn serve(config: AgentConfig, log: Handle, data: &DataRuntime) -> Result<(), RunError> {
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

    let mesh = MeshState::start(&config, Identities::OfNode, &registry, &readiness, &tasks, &watch)?;
    let shared = proxy_context(&config, mesh.state.clone(), mesh.certs.clone(), data.threads(), &registry);
    tasks.spawn("log lines", isthmus_proxy::telemetry::report_left_out(Arc::clone(&shared.metrics)));
    tasks.spawn("metric series", Arc::clone(&shared.metrics).expire(mesh.state.clone()));
    tasks.spawn("heap", heap::give_back());
    let watched = descriptors::watch(shared.config.descriptors.clone(), readiness.clone());
    tasks.spawn("file descriptors", watched);
    let pods = Pods::new(Arc::clone(&shared), &config, &registry, watch.clone());
    if let Some(dns) = pods.dns_metrics() {
        tasks.spawn("DNS metric series", dns.expire(mesh.state.clone()));
    }
    let (quit, mut asked) = mpsc::channel(1);
    metrics::process(&registry, &log, Runtime::of_threads(data.threads()));
    metrics::build(&registry, config_dump::istio_version(&config.local_info));
    let live =
        ConfigDumpSource::new(&config, mesh.state, mesh.certs, mesh.rejections, Some(Arc::clone(&pods)));
    common.serve(&registry, &readiness, &tasks, &served_watch);
    admin.serve(Admin::new(live, Logging::new(log), quit, config.ports), &tasks, &served_watch);
    // The endpoints hold their clones; this one would keep their drain from ending.
    drop(served_watch);

    let data_tasks = Tasks::new("data");
    let _own = {
        let _inside = data.threads().enter(data.threads().next());
        let own = agent_pod::start(&config, shared, watch.clone());
        let zds = zds(&config, Arc::clone(&pods), &registry, readiness.clone(), watch);
        data_tasks.spawn("zds", zds);
        own
    };
    let handover = config.handover.clone().map(|path| Handover::start(path, pods, &registry, readiness));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = %config.local_info.node, network = %config.local_info.network, "agent started");
    let why = signals.stop(&mut asked).await;
    if signals.drain(drain, config.drain, why, handover).await == Drained::Done {
        served.kill().await;
    }
    Ok(())
}

/// Runs the ZDS client once the first configuration was applied: a pod that is served earlier would refuse connections
/// that it should carry.
fn zds(
    config: &AgentConfig,
    pods: Arc<Pods>,
    registry: &Registry,
    readiness: Readiness,
    drain: Watch,
) -> impl Future<Output = ()> + use<> {
    let settings = isthmus_inpod::Config { uds: config.inpod_uds.clone() };
    let metrics = isthmus_inpod::Metrics::register(registry);
    // Not ready before the first ZDS snapshot, nor while xDS has not delivered yet.
    let no_snapshot = readiness.block(isthmus_inpod::manager::READINESS);
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
        // The client takes its own readiness guard when it is first polled, and it is polled first: releasing ours
        // after that leaves no moment in which the agent is ready without a snapshot.
        tokio::join!(biased; serving, async { drop(no_snapshot) });
        pods.close();
    }
}

/// State, certificates and xDS client; the gateway role has the same.
pub(super) struct MeshState {
    pub(super) state: State,
    pub(super) certs: Manager,
    pub(super) rejections: Rejections,
}

/// Readiness waits under this name for the first xDS push of every type.
pub(crate) const STATE: &str = "state manager";

impl MeshState {
    pub(super) fn start(
        config: &AgentConfig,
        identities: Identities,
        registry: &Registry,
        readiness: &Readiness,
        tasks: &Tasks,
        drain: &Watch,
    ) -> Result<Self, RunError> {
        let state = proxy_context::state(config);
        let trust = trust::start(&config.trust, &state, registry, tasks);
        let certs = control::manager(config, identities, trust, registry, tasks)?;
        let rejections = Rejections::default();
        let ahead = (identities == Identities::OfNode).then(|| certs.clone());
        let discovery = Arc::new(Discovery::new(state.clone(), config.local_info.node.clone(), ahead));
        discovery.apply(batch(&config.static_config));
        if let Some(plane) = &config.xds {
            let settings = xds::Config {
                server: control::server(plane, &config.local_info, config.trust.key_exchange),
                node: control::node(&config.local_info),
                rejections: rejections.clone(),
                budget: config.config_budget,
            };
            settings.server.check()?;
            let metrics = isthmus_control::metrics::Metrics::register(registry);
            tasks.spawn("xds", xds::run(settings, discovery, readiness.block(STATE), metrics, drain.clone()));
        }
        Ok(Self { state, certs, rejections })
    }
}

/// The static configuration as one batch.
fn batch(local: &LocalConfig) -> Batch {
    Batch {
        upsert_workloads: local.workloads.clone(),
        upsert_services: local.services.clone(),
        upsert_policies: local.policies.iter().map(|policy| (policy.key(), policy.clone())).collect(),
        ..Batch::default()
    }
}
