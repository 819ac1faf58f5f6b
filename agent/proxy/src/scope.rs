//! What the connections of one pod share. Owns the pod's name in every budget and error; knows no protocol.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use isthmus_hbone::pool::{self, Pool};
use isthmus_identity::Certificate;
use isthmus_model::{Facts, SpiffeId, Workload};
use isthmus_rt::task::{Spawnable, Tasks};
use isthmus_state::{Denied, InForce, Permit, PodKey, Snapshot, authorize};
use isthmus_sys::socket::Sockets;
use tokio::time::Instant;

use crate::conns::{Connections, Rechecked, Verdict};
use crate::dial::PoolKey;
use crate::error::{Error, Refusal};
use crate::metrics::Reporter;
use crate::outbound::Memory;
use crate::places::Places;
use crate::pod::{PodInfo, PodName};
use crate::turns::Share;
use crate::world::World;

/// What the connections of one pod share.
pub(crate) struct Scope {
    world: Arc<World>,
    pod: PodInfo,
    key: PodKey,
    name: PodName,
    owner: Arc<str>,
    sockets: Sockets,
    /// Whether connections to the application may carry the client's address.
    spoof: bool,
    /// The only ports that inbound tunnels lead to, where that is limited.
    only: Option<Box<[u16]>>,
    /// Stands in for a workload that the control plane does not describe; gateways have one.
    stand_in: Option<Arc<Workload>>,
    connections: Connections,
    handshakes: Arc<Places>,
    share: Arc<Share>,
    pool: Pool<PoolKey>,
    /// What was learnt of those it connects to.
    memory: Memory,
    /// Owner tasks of the tunnels that this pod dialled.
    tunnels: Tasks,
}

impl Scope {
    pub(crate) fn new(world: Arc<World>, pod: PodInfo, sockets: Sockets, spoof: bool) -> Self {
        let owner: Arc<str> = format!("{}/{}", pod.namespace, pod.name).into();
        let tunnels = Tasks::new(Arc::clone(&owner));
        Self {
            key: PodKey {
                name: pod.name.clone(),
                namespace: pod.namespace.clone(),
                service_account: pod.service_account.clone(),
            },
            name: PodName::from(&pod),
            sockets,
            spoof,
            only: None,
            stand_in: None,
            connections: Connections::default(),
            handshakes: Places::new(world.config.handshakes, world.config.handshake_safe),
            memory: Memory::new(&world.config.retry),
            share: world.turns.share(),
            pool: Pool::new(pool_config(&world), &tunnels),
            tunnels,
            owner,
            pod,
            world,
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
            None => !self.world.config.is_illegal(port),
        }
    }

    pub(crate) fn world(&self) -> &World {
        &self.world
    }

    /// The same, for what may outlive this.
    pub(crate) fn shared_world(&self) -> Arc<World> {
        Arc::clone(&self.world)
    }

    pub(crate) fn pod(&self) -> &PodInfo {
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

    /// Places for connections whose TLS handshake is under way.
    pub(crate) fn handshakes(&self) -> Arc<Places> {
        Arc::clone(&self.handshakes)
    }

    /// Its share of the threads, on which its connections run.
    pub(crate) fn share(&self) -> Arc<Share> {
        Arc::clone(&self.share)
    }

    pub(crate) fn pool(&self) -> &Pool<PoolKey> {
        &self.pool
    }

    /// What was learnt of those it connects to.
    pub(crate) fn memory(&self) -> &Memory {
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
        self.world.state.load()
    }

    /// What the control plane says of this pod; waits a little for it to say something.
    pub(crate) async fn workload(&self) -> Result<Arc<Workload>, Error> {
        if let Some(stand_in) = &self.stand_in {
            let known = self.snapshot().local_workload(&self.key).map(Arc::clone);
            return Ok(known.unwrap_or_else(|| Arc::clone(stand_in)));
        }
        let found = self.world.state.wait_for_pod(&self.key, self.world.config.workload_deadline).await;
        found.ok_or_else(|| Error::UnknownWorkload(self.name.clone()))
    }

    /// Our certificate for an identity, as [`World::certificate`].
    pub(crate) async fn certificate(&self, id: &SpiffeId) -> Result<Arc<Certificate>, Error> {
        self.world.certificate(id).await
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
        let deadline = Instant::now() + self.world.config.policy_deadline;
        let mut changes = self.world.state.subscribe();
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
        let workload = snapshot.local_workload(&self.key).map_or(known, |workload| &**workload);
        authorize(&snapshot, workload, facts)
    }

    /// Holds the open inbound connections against the policies of now, by the workload of now: what was attached to it
    /// since they were opened counts.
    pub(crate) async fn recheck(&self) -> Rechecked {
        let snapshot = self.snapshot();
        // While the workload is away nothing new is let in; what is open was let in by it.
        let Some(workload) = snapshot.local_workload(&self.key) else { return Rechecked::default() };
        let judge = |facts: &Facts| match authorize(&snapshot, workload, facts) {
            Ok(_) => Verdict::Allowed,
            Err(denied) if denied.is_pending() => Verdict::Undecided(denied.into()),
            Err(denied) => Verdict::Refused(denied.into()),
        };
        let done = self.connections.recheck(judge, self.world.config.policy_grace).await;
        if done.refused > 0 {
            tracing::info!(pod = %self.name, refused = done.refused, "connections closed due to policy change");
        }
        done
    }

    /// By what the pod's connections are judged; `None` while the control plane does not describe it.
    fn in_force(&self, snapshot: &Snapshot) -> Option<InForce> {
        snapshot.local_workload(&self.key).map(|workload| snapshot.in_force(workload))
    }

    /// Rechecks, for ever, whenever the policies that apply to the pod are others than before, or one of them is missing
    /// for too long. Most changes of the mesh are about other workloads and cost a look. Watches from the call on, not
    /// from the first poll: nothing that is accepted after the call is judged by policies whose change goes unseen.
    pub(crate) fn recheck_on_changes(self: Arc<Self>) -> impl Spawnable<Output = ()> {
        let mut changes = self.world.state.subscribe();
        let mut judged_by = self.in_force(&self.snapshot());
        async move {
            let mut next = None;
            loop {
                tokio::select! {
                    snapshot = changes.next() => {
                        let now = self.in_force(&snapshot);
                        if now == judged_by {
                            continue;
                        }
                        judged_by = now;
                    }
                    () = until(next) => {}
                }
                next = self.recheck().await.next;
            }
        }
    }
}

/// Resolves at a moment; never when there is none.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Tunnels to one destination that load alone may open.
const MOST_TUNNELS: usize = 4;

/// Threads that can run tunnels at the same time; outside of a runtime one.
fn threads() -> usize {
    tokio::runtime::Handle::try_current().map_or(1, |runtime| runtime.metrics().num_workers())
}

/// The dialler keeps its own deadlines and says which one passed; the pool's comes after all of them.
fn pool_config(world: &World) -> pool::Config {
    let config = &world.config;
    pool::Config {
        idle: config.pool_idle,
        deadline: config.dial_deadline + config.tls_deadline + Duration::from_secs(1),
        streams: world.settings.client_max_streams,
        tunnels: threads().min(MOST_TUNNELS),
        ..pool::Config::default()
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("pod", &self.pod).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
