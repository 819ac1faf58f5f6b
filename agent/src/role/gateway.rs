//! `isthmus gateway`: the east-west gateway of one network.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use isthmus_admin::logging::Logging;
use isthmus_admin::server::Admin;
use isthmus_gateway_api::Listeners;
use isthmus_identity::{CertSource as _, Manager};
use isthmus_model::{NamespacedHostname, PodRef, SpiffeId};
use isthmus_node::ApiServer;
use isthmus_node::global_services;
use isthmus_proxy::ProxyContext;
use isthmus_proxy::gateway::{Gateway, GatewayInfo, GatewayListeners, Globals, SniRoutes, Traffic};
use isthmus_rt::drain::{self, Watch};
use isthmus_rt::log::Handle;
use isthmus_rt::metrics::Registry;
use isthmus_rt::metrics::runtime::Runtime;
use isthmus_rt::ready::{BlockReady, Readiness};
use isthmus_rt::task::Tasks;
use isthmus_sys::socket::Sockets;
use tokio::sync::{mpsc, watch};

use super::RunError;
use super::agent::MeshState;
use super::http::{Common, Endpoint};
use super::shutdown::{Drained, Signals};
use crate::config::gateway::GatewayConfig;
use crate::heap;
use crate::runtime::{self, DataRuntime};
use crate::wiring::config_dump::ConfigDumpSource;
use crate::wiring::control::Identities;
use crate::wiring::gateway_listeners::{FixedListeners, ListenerKeeper};
use crate::wiring::proxy_context::proxy_context;
use crate::wiring::socket_options::apply_socket_options;
use crate::wiring::{descriptors, metrics};

/// Under this name readiness waits for the set of global services.
const GLOBALS: &str = "global services";
/// Under this name readiness waits for the gateway's own certificate.
const CERTIFICATE: &str = "certificate";
/// Under this name readiness waits for the Gateway object and its routes.
const GATEWAY: &str = "Gateway";
/// Pause before the certificate is asked for again. The manager has the backoff of the CA's requests.
const CERTIFICATE_RETRY: Duration = Duration::from_secs(1);

/// Runs the role.
pub(crate) fn run(config: GatewayConfig, log: Handle) -> Result<(), RunError> {
    isthmus_identity::install_crypto_provider();
    for warning in &config.base.warnings {
        tracing::warn!("{warning}");
    }
    if let Err(error) = isthmus_sys::limits::raise_nofile() {
        tracing::warn!(%error, "cannot raise the limit of open files (RLIMIT_NOFILE), it stays unchanged");
    }
    let data = DataRuntime::start(config.base.threads).map_err(RunError::os("data runtime"))?;
    let own = runtime::control().map_err(RunError::os("control runtime"))?;
    let outcome = own.block_on(serve(config, log, &data));
    data.shutdown();
    outcome
}

async fn serve(config: GatewayConfig, log: Handle, data: &DataRuntime) -> Result<(), RunError> {
    let base = &config.base;
    let mut signals = Signals::install()?;
    let common = Common::bind(base.metrics_address(), base.readiness_address()).await?;
    let mut admin = Endpoint::bind("admin", base.admin_address()).await?;
    if base.sockets.ipv6 {
        admin = admin.with_ipv6_loopback(base.ports.admin).await;
    }
    let (registry, readiness) = (Registry::default(), Readiness::default());
    let tasks = Tasks::new("gateway");
    let (drain, watch) = drain::channel();
    let (served, served_watch) = drain::channel();
    let mesh = MeshState::start(base, Identities::Own, &registry, &readiness, &tasks, &watch)?;
    let own = own_certificate(mesh.certs.clone(), config.identity.clone(), readiness.block(CERTIFICATE));
    tasks.spawn("own certificate", own);
    let shared = proxy_context(base, mesh.state.clone(), mesh.certs.clone(), data.threads(), &registry);
    tasks.spawn("log lines", isthmus_proxy::telemetry::report_left_out(Arc::clone(&shared.metrics)));
    tasks.spawn("metric series", Arc::clone(&shared.metrics).expire(mesh.state.clone()));
    tasks.spawn("heap", heap::give_back());
    let watched = descriptors::watch(shared.config.descriptors.clone(), readiness.clone());
    tasks.spawn("file descriptors", watched);
    let server = config.kubeconfig.clone().map_or(ApiServer::InCluster, ApiServer::Kubeconfig);
    let client = isthmus_node::connect(&server).await?;
    let globals = global_services::GlobalServices::default();
    let scopes = global_services::Config {
        cluster_domain: base.local_info.domain.clone(),
        system_namespace: base.local_info.root_namespace.to_string(),
    };
    let (unready, until) = (readiness.block(GLOBALS), watch.clone());
    tasks.spawn("globals", global_services::watch(client.clone(), scopes, globals.clone(), unready, until));
    let (declare, declared) = watch::channel(None);
    if let Some(settings) = gateway_settings(&config) {
        let (unready, until) = (readiness.block(GATEWAY), watch.clone());
        let following = isthmus_gateway_api::watch::run(client, settings, declare, unready, until);
        tasks.spawn("Gateway", following);
    }
    let (quit, mut asked) = mpsc::channel(1);
    metrics::process(&registry, &log, Runtime::of_threads(data.threads()));
    let live = ConfigDumpSource::new(base, mesh.state, mesh.certs, mesh.rejections, None);
    common.serve(&registry, &readiness, &tasks, &served_watch);
    admin.serve(Admin::new(live, Logging::new(log), quit, base.ports), &tasks, &served_watch);
    // The endpoints hold their clones; this one would keep their drain from ending.
    drop(served_watch);

    let gateway = start(&config, shared, globals, (data, &tasks), declared, watch)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), identity = %config.identity, network = %base.local_info.network, "gateway started");
    let why = signals.stop(&mut asked).await;
    let drained = signals.drain(drain, base.drain, why, None).await;
    drop(gateway);
    if drained == Drained::Done {
        served.kill().await;
    }
    Ok(())
}

/// Without its certificate a gateway can accept no tunnel: it is not ready, and traffic goes to another one.
async fn own_certificate(certs: Manager, identity: SpiffeId, unready: BlockReady) {
    while certs.certificate(&identity).await.is_err() {
        tokio::time::sleep(CERTIFICATE_RETRY).await;
    }
    drop(unready);
}

/// Which Gateway is followed; `None` when the process has none.
fn gateway_settings(config: &GatewayConfig) -> Option<isthmus_gateway_api::Settings> {
    let base = &config.base;
    Some(isthmus_gateway_api::Settings {
        namespace: config.identity.namespace.to_string(),
        name: config.gateway_name.clone()?,
        network: base.local_info.network.to_string(),
        cluster_domain: base.local_info.domain.clone(),
        reserved_ports: [base.ports.admin, base.ports.metrics, base.ports.readiness].into(),
    })
}

struct KnownGlobals(global_services::GlobalServices);

impl Globals for KnownGlobals {
    fn is_global(&self, service: &NamespacedHostname) -> bool {
        self.0.contains(service)
    }
}

/// Binds the listeners of the settings and serves; then those that the Gateway declares, as they come and go.
fn start(
    config: &GatewayConfig,
    proxy_context: Arc<ProxyContext>,
    globals: global_services::GlobalServices,
    (data, tasks): (&DataRuntime, &Tasks),
    declared: watch::Receiver<Option<Listeners>>,
    drain: Watch,
) -> Result<Arc<Gateway>, RunError> {
    let _inside = data.threads().enter(data.threads().next());
    let local_info = &config.base.local_info;
    let sockets = apply_socket_options(Sockets::host(), &config.base.sockets);
    let pod = PodRef {
        uid: local_info.pod_name.as_str().into(),
        name: local_info.pod_name.as_str().into(),
        namespace: config.identity.namespace.clone(),
        service_account: config.identity.service_account.clone(),
    };
    let info = GatewayInfo { pod, trust_domain: config.identity.trust_domain.clone() };
    let (none, globals) = (GatewayListeners::default(), Arc::new(KnownGlobals(globals)));
    let gateway = Gateway::start(proxy_context, info, none, globals, sockets.clone(), drain.clone());
    let gateway = Arc::new(gateway);
    let keeper = ListenerKeeper {
        gateway: Arc::clone(&gateway),
        fixed: fixed(config),
        sockets,
        threads: data.threads().clone(),
        tasks: tasks.clone(),
        drain: config.base.drain,
    };
    keeper.open_fixed(&drain)?;
    if config.gateway_name.is_some() {
        tasks.spawn("gateway listeners", keeper.follow(declared, drain));
    }
    Ok(gateway)
}

/// The listeners of the settings. HBONE is the default of a gateway without a Gateway object.
fn fixed(config: &GatewayConfig) -> FixedListeners {
    let mut by_port: BTreeMap<u16, SniRoutes> = BTreeMap::new();
    for route in &config.sni {
        let names: &mut HashMap<_, _> = &mut by_port.entry(route.port).or_default().names;
        names.insert(route.name.to_ascii_lowercase(), route.to.clone().into());
    }
    let sni = by_port.into_iter().map(|(port, routes)| (port, Traffic::Tls(routes)));
    let tcp = config.tcp.iter().map(|route| (route.port, Traffic::Tcp(route.to.clone().into())));
    let hbone = BTreeMap::from([(config.hbone_port, Traffic::Hbone)]);
    let mut all = FixedListeners { always: sni.chain(tcp).collect(), without_gateway: BTreeMap::new() };
    if config.hbone_always {
        all.always.extend(hbone);
    } else {
        all.without_gateway = hbone;
    }
    all
}
