//! Starts and stops the data plane of each enrolled pod: binds sockets in the pod's network namespace, and runs its proxy
//! and its DNS proxy.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isthmus_admin::Each;
use isthmus_admin::dump::pods::{ConnectionView, Connections, PodView};
use isthmus_dns::DnsProxy;
use isthmus_inpod::{Blame, EnrolledPod, PodEntry, PodList, PodRuntime, PodState, StartError, StopMode};
use isthmus_model::PodUid;
use isthmus_proxy::handover::PodHandover;
use isthmus_proxy::{Connection, Listeners, PodProxy, ProxyContext};
use isthmus_rt::BoxFuture;
use isthmus_rt::drain::Watch;
use isthmus_rt::metrics::Registry;
use isthmus_rt::task::Tasks;
use isthmus_sys::socket::Sockets;

use super::application_mark::application_mark;
use super::socket_options::apply_socket_options;
use crate::config::agent::{AgentConfig, SocketConfig};

/// The data planes of this node's pods.
pub(crate) struct Pods {
    proxy_context: Arc<ProxyContext>,
    sockets: SocketConfig,
    dns: Option<Dns>,
    /// Cloned for each pod; `None` once no more pods are accepted, since a held watch counts as active in the drain.
    drain: Mutex<Option<Watch>>,
    deadline: Duration,
    /// The pods as ZDS announced them.
    table: PodList,
    running: Mutex<HashMap<PodUid, PodDataPlane>>,
    /// Data planes of removed pods, whose connections drain.
    draining: Tasks,
}

/// Settings and metrics that all DNS proxies share.
struct Dns {
    config: isthmus_dns::Config,
    metrics: Arc<isthmus_dns::Metrics>,
}

/// The data plane of one pod.
struct PodDataPlane {
    proxy: PodProxy,
    dns: Option<DnsProxy>,
}

impl Pods {
    pub(crate) fn new(
        proxy_context: Arc<ProxyContext>,
        config: &AgentConfig,
        registry: &Registry,
        drain: Watch,
    ) -> Arc<Self> {
        let dns = config.dns.then(|| Dns {
            config: isthmus_dns::Config {
                port: config.ports.dns,
                cluster_domain: config.local_info.domain.clone(),
                preferred_namespace: config.local_info.preferred_namespace.clone(),
                upstream: config.resolvers.clone(),
                ..isthmus_dns::Config::default()
            },
            metrics: isthmus_dns::Metrics::register(registry),
        });
        Arc::new(Self {
            proxy_context,
            sockets: config.sockets.clone(),
            dns,
            drain: Mutex::new(Some(drain)),
            deadline: config.drain,
            table: PodList::default(),
            running: Mutex::default(),
            draining: Tasks::new("removed pods"),
        })
    }

    /// Accepts no more pods.
    pub(crate) fn close(&self) {
        *self.drain.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The pods that are served.
    pub(crate) fn running(&self) -> Vec<PodUid> {
        self.lock().keys().cloned().collect()
    }

    /// The sides of a hand-over of those of these pods that are served.
    pub(crate) fn handovers(&self, pods: &[PodUid]) -> Vec<(PodUid, PodHandover)> {
        let running = self.lock();
        let of = |uid: &PodUid| Some((uid.clone(), running.get(uid)?.proxy.handover()));
        pods.iter().filter_map(of).collect()
    }

    /// Metrics of the DNS proxies.
    pub(crate) fn dns_metrics(&self) -> Option<Arc<isthmus_dns::Metrics>> {
        self.dns.as_ref().map(|dns| Arc::clone(&dns.metrics))
    }

    /// The table that the ZDS client fills.
    pub(crate) fn table(&self) -> PodList {
        self.table.clone()
    }

    /// The pods for the config dump, ordered by UID. Connections are read lazily, one pod after the other.
    pub(crate) fn view(&self) -> Each<'_, PodView<'_>> {
        let table = self.table.snapshot();
        let mut order: Vec<usize> = (0..table.len()).collect();
        order.sort_by(|a, b| table[*a].pod.uid.cmp(&table[*b].pod.uid));
        Box::new(order.into_iter().map(move |at| self.view_of(&table[at])))
    }

    fn view_of(&self, entry: &PodEntry) -> PodView<'static> {
        let PodEntry { pod, state, reason } = entry;
        let open = self.lock().get(&pod.uid).map(|running| running.proxy.open());
        PodView {
            uid: pod.uid.clone(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            service_account: pod.service_account.clone(),
            reason: reason.clone(),
            connections: open.filter(|_| *state == PodState::Up).map(|open| Connections {
                inbound: Box::new(open.inbound().map(connection)),
                outbound: Box::new(open.outbound().map(connection)),
            }),
        }
    }

    fn launch(&self, enrolled: &EnrolledPod) -> Result<PodDataPlane, StartError> {
        let EnrolledPod { pod, netns } = enrolled;
        let drain = self.drain.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let drain = drain.ok_or(StartError::ShuttingDown)?;
        let threads = &self.proxy_context.threads;
        // What is bound and started from here on accepts on this thread, and answers DNS there.
        let _inside = threads.enter(threads.next());
        let sockets = Sockets::in_netns(Arc::new(netns.clone()))
            .with_mark(Some(self.sockets.mark))
            .with_application_mark(application_mark(netns, self.sockets.mark))
            .with_reuse_port(self.sockets.reuse_port);
        let sockets = apply_socket_options(sockets, &self.sockets)
            .with_local_congestion(&self.sockets.local_congestion);
        let config = &self.proxy_context.config;
        let listeners = Listeners::bind(&sockets, config.ports, config.original_source);
        let listeners = listeners.map_err(|error| not_started("listeners", Blame::of(&error), error))?;
        let context = Arc::clone(&self.proxy_context);
        let proxy = PodProxy::start(context, pod.clone(), listeners, sockets.clone(), drain.clone());
        // On failure the proxy is dropped; the node role has not been acknowledged yet.
        let dns = match &self.dns {
            None => None,
            Some(dns) => Some(self.launch_dns(dns, &sockets, &drain, &proxy)?),
        };
        Ok(PodDataPlane { proxy, dns })
    }

    fn launch_dns(
        &self,
        dns: &Dns,
        sockets: &Sockets,
        drain: &Watch,
        proxy: &PodProxy,
    ) -> Result<DnsProxy, StartError> {
        let (state, metrics) = (self.proxy_context.state.clone(), Arc::clone(&dns.metrics));
        let config = isthmus_dns::Config { descriptors: Some(proxy.descriptors()), ..dns.config.clone() };
        DnsProxy::start(state, proxy.pod().clone(), config, sockets, drain, metrics, proxy.share())
            .map_err(|error| not_started("DNS proxy", Blame::of(error.cause()), error))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PodUid, PodDataPlane>> {
        // A panic cannot leave the map inconsistent.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PodRuntime for Pods {
    fn start(&self, pod: EnrolledPod) -> BoxFuture<'_, Result<(), StartError>> {
        Box::pin(async move {
            let running = self.launch(&pod)?;
            self.lock().insert(pod.pod.uid, running);
            Ok(())
        })
    }

    fn stop<'a>(&'a self, uid: &'a PodUid, mode: StopMode) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let Some(PodDataPlane { proxy, dns }) = self.lock().remove(uid) else { return };
            drop(dns);
            match mode {
                // ZDS requests are serial and must be acknowledged within seconds, so they do not wait for the drain.
                StopMode::Drain => {
                    let deadline = self.deadline;
                    self.draining.spawn("drain", async move { proxy.stop(deadline).await });
                }
                StopMode::Immediate => proxy.stop(Duration::ZERO).await,
            }
        })
    }
}

fn not_started(
    component: &'static str,
    whose: Blame,
    error: impl std::error::Error + Send + Sync + 'static,
) -> StartError {
    StartError::Component { whose, component, cause: error.into() }
}

fn connection(conn: Connection) -> ConnectionView {
    ConnectionView {
        src: conn.src.to_string(),
        original_dst: conn.original_dst,
        actual_dst: address(conn.actual_dst),
        protocol: conn.protocol.as_str(),
    }
}

fn address(address: SocketAddr) -> String {
    address.to_string()
}

#[cfg(test)]
mod tests;
