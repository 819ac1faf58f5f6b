//! What the connections of one pod share. Owns the pod's name in every budget and error; knows no protocol.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use isthmus_hbone::pool::{self, Pool};
use isthmus_model::{Facts, Workload};
use isthmus_rt::task::Tasks;
use isthmus_state::{PodKey, Snapshot, authorize};
use isthmus_sys::socket::Sockets;
use tokio::sync::Semaphore;

use crate::conns::Connections;
use crate::dial::PoolKey;
use crate::error::{Error, Refusal};
use crate::metrics::Reporter;
use crate::pod::{PodInfo, PodName};
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
    /// Stands in for a workload that the control plane does not describe; gateways have one.
    stand_in: Option<Arc<Workload>>,
    connections: Connections,
    handshakes: Arc<Semaphore>,
    pool: Pool<PoolKey>,
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
            stand_in: None,
            connections: Connections::default(),
            handshakes: Arc::new(Semaphore::new(world.config.handshakes)),
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

    pub(crate) fn world(&self) -> &World {
        &self.world
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
    pub(crate) fn handshakes(&self) -> Arc<Semaphore> {
        Arc::clone(&self.handshakes)
    }

    pub(crate) fn pool(&self) -> &Pool<PoolKey> {
        &self.pool
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

    /// Holds the open inbound connections against the policies of now, by the workload of now: what was attached to it
    /// since they were opened counts.
    pub(crate) fn recheck(&self) -> usize {
        let snapshot = self.snapshot();
        // While the workload is away nothing new is let in; what is open was let in by it.
        let Some(workload) = snapshot.local_workload(&self.key) else { return 0 };
        let judge = |facts: &Facts| authorize(&snapshot, workload, facts).map(drop).map_err(Refusal::from);
        let refused = self.connections.recheck(judge);
        if refused > 0 {
            tracing::info!(pod = %self.name, refused, "connections closed due to policy change");
        }
        refused
    }

    /// Rechecks at every change of the mesh, for ever.
    pub(crate) async fn recheck_on_changes(self: Arc<Self>) {
        let mut changes = self.world.state.subscribe();
        loop {
            changes.next().await;
            self.recheck();
        }
    }
}

/// The dialler keeps its own deadlines and says which one passed; the pool's comes after all of them.
fn pool_config(world: &World) -> pool::Config {
    let config = &world.config;
    pool::Config {
        idle: config.pool_idle,
        deadline: config.dial_deadline + config.tls_deadline + Duration::from_secs(1),
        streams: world.settings.client_max_streams,
        ..pool::Config::default()
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("pod", &self.pod).finish_non_exhaustive()
    }
}
