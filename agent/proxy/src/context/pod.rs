//! What the connections of one pod share. Owns the pod's name in every budget and error; knows no protocol.

use super::proxy::ProxyContext;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use isthmus_hbone::pool::{self, Pool};
use isthmus_identity::Certificate;
use isthmus_model::{Facts, PodRef, SpiffeId, Workload};
use isthmus_rt::fair::Share;
use isthmus_rt::task::Tasks;
use isthmus_state::{Denied, Permit, Snapshot, authorize};
use isthmus_sys::socket::Sockets;
use tokio::time::Instant;

use crate::accept::HandshakeSlots;
use crate::error::Error;
use crate::retry::SharedRetryState;
use crate::tracker::Connections;
use crate::types::{PodName, PoolKey, Refusal, Reporter};

/// What the connections of one pod share.
pub(crate) struct PodContext {
    pub(super) proxy: Arc<ProxyContext>,
    pub(super) pod: PodRef,
    pub(super) name: PodName,
    owner: Arc<str>,
    sockets: Sockets,
    /// Whether connections to the application may carry the client's address.
    spoof: bool,
    /// The only ports that inbound tunnels lead to, where that is limited.
    only: Option<Box<[u16]>>,
    /// Stands in for a workload that the control plane does not describe; gateways have one.
    stand_in: Option<Arc<Workload>>,
    pub(super) connections: Connections,
    handshakes: Arc<HandshakeSlots>,
    share: Arc<Share>,
    pool: Pool<PoolKey>,
    /// What was learnt of those it connects to.
    memory: SharedRetryState,
    /// Owner tasks of the tunnels that this pod dialled: encryption and framing of all that it sends, on its share.
    tunnels: Tasks,
}

impl PodContext {
    pub(crate) fn new(proxy: Arc<ProxyContext>, pod: PodRef, sockets: Sockets, spoof: bool) -> Self {
        let owner: Arc<str> = format!("{}/{}", pod.namespace, pod.name).into();
        let share = proxy.scheduler.share();
        let tunnels = Tasks::new(Arc::clone(&owner)).on(Arc::clone(&share));
        Self {
            name: PodName::from(&pod),
            sockets,
            spoof,
            only: None,
            stand_in: None,
            connections: Connections::default(),
            handshakes: HandshakeSlots::new(proxy.config.handshakes, proxy.config.handshake_grace),
            memory: SharedRetryState::new(&proxy.config.retry),
            share,
            pool: Pool::new(pool_config(&proxy), &tunnels),
            tunnels,
            owner,
            pod,
            proxy,
        }
    }

    /// With a workload to be taken as this one while the control plane describes none.
    pub(crate) fn with_stand_in(self, workload: Workload) -> Self {
        Self { stand_in: Some(Arc::new(workload)), ..self }
    }

    /// With inbound tunnels that lead to these ports only.
    pub(crate) fn with_only(self, ports: &[u16]) -> Self {
        Self { only: Some(ports.into()), ..self }
    }

    /// Whether inbound tunnels may lead to a port: to none of the agent's own in a pod, and nowhere else in the agent's
    /// namespace.
    pub(crate) fn may_reach(&self, port: u16) -> bool {
        match &self.only {
            Some(only) => only.contains(&port),
            None => !self.proxy.config.is_illegal(port),
        }
    }

    pub(crate) fn proxy(&self) -> &ProxyContext {
        &self.proxy
    }

    /// The same, for what may outlive this.
    pub(crate) fn shared_proxy(&self) -> Arc<ProxyContext> {
        Arc::clone(&self.proxy)
    }

    pub(crate) fn pod(&self) -> &PodRef {
        &self.pod
    }

    pub(crate) fn name(&self) -> &PodName {
        &self.name
    }

    /// Name of its tasks.
    pub(crate) fn owner(&self) -> Arc<str> {
        Arc::clone(&self.owner)
    }

    pub(crate) fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    pub(crate) fn may_spoof(&self) -> bool {
        self.spoof
    }

    pub(crate) fn connections(&self) -> &Connections {
        &self.connections
    }

    /// HandshakeSlots for connections whose TLS handshake is under way.
    pub(crate) fn handshakes(&self) -> Arc<HandshakeSlots> {
        Arc::clone(&self.handshakes)
    }

    /// The pod's share of CPU time. Everything that runs on behalf of the pod is charged to it.
    pub(crate) fn share(&self) -> Arc<Share> {
        Arc::clone(&self.share)
    }

    pub(crate) fn pool(&self) -> &Pool<PoolKey> {
        &self.pool
    }

    /// What was learnt of those it connects to.
    pub(crate) fn memory(&self) -> &SharedRetryState {
        &self.memory
    }

    pub(crate) fn tunnels(&self) -> &Tasks {
        &self.tunnels
    }

    /// Who reports the connections that leave here.
    pub(crate) fn reporter(&self) -> Reporter {
        if self.stand_in.is_some() { Reporter::Gateway } else { Reporter::Source }
    }

    /// The mesh as it is now, without waiting for anything.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.proxy.state.load()
    }

    /// What the control plane says of this pod; waits a little for it to say something.
    pub(crate) async fn workload(&self) -> Result<Arc<Workload>, Error> {
        if let Some(stand_in) = &self.stand_in {
            let known = self.snapshot().local_workload(&self.pod).map(Arc::clone);
            return Ok(known.unwrap_or_else(|| Arc::clone(stand_in)));
        }
        let found = self.proxy.state.wait_for_pod(&self.pod, self.proxy.config.workload_deadline).await;
        found.ok_or_else(|| Error::UnknownWorkload(self.name.clone()))
    }

    /// Our certificate for an identity, as [`ProxyContext::certificate`].
    pub(crate) async fn certificate(&self, id: &SpiffeId) -> Result<Arc<Certificate>, Error> {
        self.proxy.certificate(id).await
    }

    /// Judges a new inbound connection by the mesh of now. `known` is the pod as it was looked up, a moment ago: a
    /// policy that was attached to it since counts, or it would be seen neither here nor by the recheck that came before
    /// the connection was in the table. A policy that applies and has not arrived is waited for, but not for long.
    pub(crate) async fn judge(&self, known: &Workload, facts: &Facts) -> Result<Permit, Refusal> {
        match self.verdict(known, facts) {
            Err(denied) if denied.is_pending() => Box::pin(self.judge_in_time(known, facts)).await,
            verdict => verdict.map_err(Refusal::from),
        }
    }

    async fn judge_in_time(&self, known: &Workload, facts: &Facts) -> Result<Permit, Refusal> {
        let deadline = Instant::now() + self.proxy.config.policy_deadline;
        let mut changes = self.proxy.state.subscribe();
        loop {
            // Subscribed first, looked again after, so that nothing is missed in between.
            let pending = match self.verdict(known, facts) {
                Err(denied) if denied.is_pending() => denied,
                verdict => return verdict.map_err(Refusal::from),
            };
            if tokio::time::timeout_at(deadline, changes.next()).await.is_err() {
                return Err(pending.into());
            }
        }
    }

    fn verdict(&self, known: &Workload, facts: &Facts) -> Result<Permit, Denied> {
        let snapshot = self.snapshot();
        let workload = snapshot.local_workload(&self.pod).map_or(known, |workload| &**workload);
        authorize(&snapshot, workload, facts)
    }
}

/// Tunnels to one destination that load alone may open.
const MOST_TUNNELS: usize = 4;

/// Threads that can run tunnels at the same time; outside of a runtime one.
fn threads() -> usize {
    tokio::runtime::Handle::try_current().map_or(1, |runtime| runtime.metrics().num_workers())
}

/// The dialler keeps its own deadlines and says which one passed; the pool's comes after all of them.
fn pool_config(proxy: &ProxyContext) -> pool::Config {
    let config = &proxy.config;
    pool::Config {
        idle: config.pool_idle,
        deadline: config.dial_deadline + config.tls_deadline + Duration::from_secs(1),
        streams: proxy.settings.client_max_streams,
        tunnels: threads().min(MOST_TUNNELS),
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
