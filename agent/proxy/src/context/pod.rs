//! What the connections of one pod share: tunnel pool, connection table, handshake slots, retry state and CPU share;
//! and the authorization of a new inbound connection by the current policies. Knows no protocol.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use isthmus_hbone::pool::{self, Pool};
use isthmus_hbone::{PeerBudgets, Settings, TooManyTunnels};
use isthmus_identity::Certificate;
use isthmus_model::{Facts, PodRef, SpiffeId, Workload};
use isthmus_rt::descriptors::{DescriptorPermit, DescriptorShare};
use isthmus_rt::fair::Share;
use isthmus_rt::task::Tasks;
use isthmus_rt::threads::{Offload, PerThread, Threads};
use isthmus_state::{Denied, Permit, Snapshot, authorize};
use isthmus_sys::socket::Sockets;
use tokio::time::Instant;

use super::open_tunnels::OpenTunnels;
use super::proxy::ProxyContext;
use crate::accept::{Admission, HandshakeSlots};
use crate::error::Error;
use crate::retry::SharedRetryState;
use crate::tracker::Connections;
use crate::types::{Direction, PodName, PoolKey, Refusal, Reporter};

/// Descriptors of a pod without connections: seven sockets that listen, conntrack, the namespace, and some spare sockets (16 at
/// most, in a burst of connections).
const OWN_DESCRIPTORS: usize = 16;

/// Shared by the connections of one pod or gateway.
pub(crate) struct PodContext {
    pub(super) proxy: Arc<ProxyContext>,
    pub(super) pod: PodRef,
    pub(super) name: PodName,
    owner: Arc<str>,
    sockets: Sockets,
    /// Of connections to the pod's application.
    local_sockets: Sockets,
    /// Whether connections to the application use the client's source address (needs `IP_TRANSPARENT`).
    use_client_source: bool,
    /// The only ports that inbound tunnels may reach; `None`: all but the proxy's own.
    allowed_ports: Option<Box<[u16]>>,
    /// Used while the control plane does not describe the local workload; set for gateways only.
    fallback_workload: Option<Arc<Workload>>,
    pub(super) connections: Connections,
    handshakes: Arc<HandshakeSlots>,
    descriptors: DescriptorShare,
    /// What the pod has open without connections.
    _own_descriptors: DescriptorPermit,
    share: Arc<Share>,
    /// Each thread has tunnels of its own, so that what a tunnel's streams share is not shared with another thread.
    pub(super) pools: PerThread<OnceLock<Pool<PoolKey>>>,
    open_tunnels: OpenTunnels,
    /// Settings of the pod's tunnels, with its budget of memory.
    settings: Settings,
    /// The peers that have tunnels to the pod: an identity at an address.
    peers: PeerBudgets<(SpiffeId, IpAddr)>,
    /// Retry budget and ejections of the pod's upstreams.
    retry_state: SharedRetryState,
    /// Tasks that drive the tunnels which this pod dialled: encryption and framing are charged to its CPU share.
    tunnels: Tasks,
}

impl PodContext {
    pub(crate) fn new(
        proxy: Arc<ProxyContext>,
        pod: PodRef,
        sockets: Sockets,
        use_client_source: bool,
    ) -> Self {
        let owner: Arc<str> = format!("{}/{}", pod.namespace, pod.name).into();
        let share = proxy.scheduler.share();
        let tunnels = Tasks::new(Arc::clone(&owner)).on(Arc::clone(&share));
        let descriptors = proxy.metrics.pod_descriptors(&proxy.config.descriptors, &pod);
        Self {
            name: PodName::from(&pod),
            local_sockets: if use_client_source {
                sockets.to_applications().with_spares()
            } else {
                sockets.to_applications()
            },
            sockets,
            use_client_source,
            allowed_ports: None,
            fallback_workload: None,
            connections: Connections::default(),
            handshakes: HandshakeSlots::new(proxy.config.handshakes, proxy.config.handshake_grace),
            _own_descriptors: descriptors.hold(OWN_DESCRIPTORS),
            descriptors,
            retry_state: SharedRetryState::new(&proxy.config.retry),
            share,
            pools: PerThread::new(&proxy.threads, |_| OnceLock::new()),
            open_tunnels: OpenTunnels::default(),
            settings: pod_settings(&proxy, &pod),
            peers: PeerBudgets::default(),
            tunnels,
            owner,
            pod,
            proxy,
        }
    }

    /// Sets the workload that is used while the control plane does not describe the local one.
    pub(crate) fn with_fallback_workload(self, workload: Workload) -> Self {
        Self { fallback_workload: Some(Arc::new(workload)), ..self }
    }

    /// Restricts inbound tunnels to these ports.
    pub(crate) fn with_allowed_ports(self, ports: &[u16]) -> Self {
        Self { allowed_ports: Some(ports.into()), ..self }
    }

    /// Whether an inbound tunnel may reach a port: any but the proxy's own in a pod, the allowed ones in the agent's
    /// pod.
    pub(crate) fn may_reach(&self, port: u16) -> bool {
        match &self.allowed_ports {
            Some(allowed) => allowed.contains(&port),
            None => !self.proxy.config.is_illegal(port),
        }
    }

    pub(crate) fn proxy(&self) -> &ProxyContext {
        &self.proxy
    }

    /// The process's context, for tasks that may outlive this one.
    pub(crate) fn shared_proxy(&self) -> Arc<ProxyContext> {
        Arc::clone(&self.proxy)
    }

    pub(crate) fn pod(&self) -> &PodRef {
        &self.pod
    }

    pub(crate) fn name(&self) -> &PodName {
        &self.name
    }

    /// Name of the pod's tasks.
    pub(crate) fn owner(&self) -> Arc<str> {
        Arc::clone(&self.owner)
    }

    pub(crate) fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// The factory of connections to the pod's application.
    pub(crate) fn local_sockets(&self) -> &Sockets {
        &self.local_sockets
    }

    /// Whether an address that the control plane does not list is the pod's all the same, by its kernel. Loopback
    /// addresses are every pod's and never meant.
    pub(crate) fn has_unlisted_address(&self, address: IpAddr) -> bool {
        !address.is_loopback() && self.sockets.is_local(address)
    }

    /// Whether connections to the application use the client's source address.
    pub(crate) fn uses_client_source(&self) -> bool {
        self.use_client_source
    }

    pub(crate) fn connections(&self) -> &Connections {
        &self.connections
    }

    /// What connections to a listener get first: a descriptor.
    pub(crate) fn admission(&self, direction: Direction) -> Admission {
        let (descriptors, metrics) = (self.descriptors.clone(), Arc::clone(&self.proxy.metrics));
        Admission { share: self.share(), descriptors, handshakes: None, metrics, direction }
    }

    /// The same for a listener of TLS connections, which need a handshake slot as well.
    pub(crate) fn tls_admission(&self) -> Admission {
        let handshakes = Some(Arc::clone(&self.handshakes));
        Admission { handshakes, ..self.admission(Direction::Inbound) }
    }

    /// Shares out the handshake slots. Never completes.
    pub(crate) async fn run_handshake_clock(self: Arc<Self>) {
        self.handshakes.run_clock().await;
    }

    /// The pod's share of the process's descriptors.
    pub(crate) fn descriptors(&self) -> &DescriptorShare {
        &self.descriptors
    }

    /// Counts a descriptor of a connection that is to be dialled.
    pub(crate) fn descriptor(&self) -> Result<DescriptorPermit, Error> {
        self.descriptors.acquire().ok_or(Error::NoDescriptor)
    }

    /// What a hand-over needs of the pod's tunnels.
    pub(crate) fn open_tunnels(&self) -> &OpenTunnels {
        &self.open_tunnels
    }

    /// The pod's share of CPU time: all work on behalf of the pod is charged to it.
    pub(crate) fn share(&self) -> Arc<Share> {
        Arc::clone(&self.share)
    }

    /// Settings of the pod's tunnels.
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Settings of a tunnel that a peer opens.
    ///
    /// # Errors
    /// When it has too many.
    pub(crate) fn settings_for(&self, peer: &SpiffeId, source: IpAddr) -> Result<Settings, TooManyTunnels> {
        let peer = self.peers.admit((peer.clone(), source))?;
        Ok(Settings { peer: Some(peer), ..self.settings.clone() })
    }

    /// The tunnels of the current thread.
    pub(crate) fn pool(&self) -> &Pool<PoolKey> {
        self.pools.here().get_or_init(|| Pool::new(pool_config(&self.proxy), &self.tunnels))
    }

    /// Where the steps of handshakes are computed.
    pub(crate) fn offload(&self) -> Offload {
        Offload::new(&self.tunnels, &self.proxy.threads)
    }

    /// The threads that carry the pod's connections.
    pub(crate) fn threads(&self) -> Threads {
        self.proxy.threads.clone()
    }

    /// What was learnt of those it connects to.
    pub(crate) fn retry_state(&self) -> &SharedRetryState {
        &self.retry_state
    }

    pub(crate) fn tunnels(&self) -> &Tasks {
        &self.tunnels
    }

    /// The reporter of outgoing connections.
    pub(crate) fn reporter(&self) -> Reporter {
        if self.fallback_workload.is_some() { Reporter::Gateway } else { Reporter::Source }
    }

    /// The current state of the mesh.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.proxy.state.load()
    }

    /// The local workload. Waits for the control plane to describe it, up to the configured deadline; a gateway uses
    /// its fallback at once.
    pub(crate) async fn workload(&self) -> Result<Arc<Workload>, Error> {
        if let Some(fallback) = &self.fallback_workload {
            let known = self.snapshot().local_workload(&self.pod).map(Arc::clone);
            return Ok(known.unwrap_or_else(|| Arc::clone(fallback)));
        }
        let found = self.proxy.state.wait_for_pod(&self.pod, self.proxy.config.workload_deadline).await;
        found.ok_or_else(|| Error::UnknownWorkload(self.name.clone()))
    }

    /// The certificate of a local identity, see [`ProxyContext::certificate`].
    pub(crate) async fn certificate(&self, id: &SpiffeId) -> Result<Arc<Certificate>, Error> {
        self.proxy.certificate(id).await
    }

    /// Authorizes a new inbound connection by the current policies. `known` is the workload as it was looked up
    /// before the connection entered the table. Policies are taken from its current version where there is one: a
    /// policy attached in between would otherwise be missed both here and by the recheck, which ran before the
    /// connection was in the table.
    ///
    /// Waits for a policy that the workload references and the control plane has not sent, up to the configured
    /// deadline.
    pub(crate) async fn authorize(&self, known: &Workload, facts: &Facts) -> Result<Permit, Refusal> {
        match self.try_authorize(known, facts) {
            Err(denied) if denied.is_pending() => Box::pin(self.authorize_when_known(known, facts)).await,
            decided => decided.map_err(Refusal::from),
        }
    }

    async fn authorize_when_known(&self, known: &Workload, facts: &Facts) -> Result<Permit, Refusal> {
        let deadline = Instant::now() + self.proxy.config.policy_deadline;
        let mut changes = self.proxy.state.subscribe();
        loop {
            // After subscribing, so that no change is missed between the two.
            let pending = match self.try_authorize(known, facts) {
                Err(denied) if denied.is_pending() => denied,
                decided => return decided.map_err(Refusal::from),
            };
            if tokio::time::timeout_at(deadline, changes.next()).await.is_err() {
                return Err(pending.into());
            }
        }
    }

    fn try_authorize(&self, known: &Workload, facts: &Facts) -> Result<Permit, Denied> {
        let snapshot = self.snapshot();
        let workload = snapshot.local_workload(&self.pod).map_or(known, |workload| &**workload);
        authorize(&snapshot, workload, facts)
    }
}

/// The process's settings of tunnels, with a budget for the pod.
fn pod_settings(proxy: &ProxyContext, pod: &PodRef) -> Settings {
    let settings = &proxy.settings;
    let memory = proxy.metrics.pod_budget(&settings.memory, proxy.config.pod_memory, pod);
    Settings { memory, ..settings.clone() }
}

/// The dialler has deadlines of its own, whose errors name the stage that failed; the pool's deadline comes after them.
fn pool_config(proxy: &ProxyContext) -> pool::Config {
    let config = &proxy.config;
    pool::Config {
        idle: config.pool_idle,
        deadline: config.dial_deadline + config.tls_deadline + Duration::from_secs(1),
        streams: proxy.settings.client_max_streams,
        ..pool::Config::default()
    }
}

impl fmt::Debug for PodContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodContext").field("pod", &self.pod).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
