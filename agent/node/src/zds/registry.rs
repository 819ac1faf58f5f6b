//! The pods that the agents serve and the connections of the agents, behind one lock: a pod that is added while a
//! connection registers is either in its snapshot or in the requests that follow.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isthmus_model::{PodRef, PodUid};
use isthmus_rt::BoxFuture;
use isthmus_sys::netns::Netns;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::session::{self, ACK_TIMEOUT};
use super::{AgentError, DataPlane};
use crate::metrics::Metrics;

/// Requests that may wait for one connection.
const QUEUE: usize = 100;

/// Resolves a request's ack for the caller that waits for it.
pub(crate) type AckSender = oneshot::Sender<Result<(), AgentError>>;
/// A request with a real network namespace in it.
pub(crate) type Request = session::Request<Netns, AckSender>;

type AckReceiver = oneshot::Receiver<Result<(), AgentError>>;

/// Pods and connections. Clones share them.
#[derive(Clone)]
pub(crate) struct AgentRegistry(Arc<SharedRegistry>);

struct SharedRegistry {
    state: Mutex<RegistryState>,
    synced: Notify,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct RegistryState {
    pods: BTreeMap<PodUid, (PodRef, Option<Netns>)>,
    /// Oldest first: during an upgrade the new agent connects while its predecessor still drains.
    connections: Vec<Connection>,
    next_id: u64,
}

struct Connection {
    id: u64,
    requests: mpsc::Sender<Request>,
}

/// A registered connection; dropping it deregisters.
pub(crate) struct Registration {
    registry: AgentRegistry,
    id: u64,
    /// What to send after the snapshot.
    pub(crate) requests: mpsc::Receiver<Request>,
    /// What to send first.
    pub(crate) snapshot: Vec<Request>,
}

impl AgentRegistry {
    /// Without pods and connections.
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(SharedRegistry { state: Mutex::default(), synced: Notify::new(), metrics }))
    }

    /// Registers a connection as the newest one, which pods are added to from now on.
    pub(crate) fn register(&self) -> Registration {
        let mut state = self.lock();
        let (sender, requests) = mpsc::channel(QUEUE);
        let id = state.next_id;
        state.next_id += 1;
        state.connections.push(Connection { id, requests: sender });
        let snapshot = state
            .pods
            .values()
            .map(|(pod, netns)| match netns {
                Some(netns) => Request::Add { pod: pod.clone(), netns: netns.clone(), ack: None },
                None => Request::Keep { uid: pod.uid.clone() },
            })
            .collect();
        self.report_connected(&state);
        Registration { registry: self.clone(), id, requests, snapshot }
    }

    /// A connection has acknowledged its snapshot.
    pub(crate) fn mark_synced(&self) {
        self.0.synced.notify_one();
    }

    /// Resolves when a connection has acknowledged its snapshot since the last call.
    pub(crate) async fn synced(&self) {
        self.0.synced.notified().await;
    }

    fn send_add(&self, pod: &PodRef, netns: Netns) -> Result<AckReceiver, AgentError> {
        let mut state = self.lock();
        state.pods.insert(pod.uid.clone(), (pod.clone(), Some(netns.clone())));
        let newest = state.connections.last().ok_or(AgentError::NotConnected)?;
        let (ack, receiver) = oneshot::channel();
        send(newest, Request::Add { pod: pod.clone(), netns, ack: Some(ack) })?;
        Ok(receiver)
    }

    fn send_del(&self, uid: &PodUid) -> Vec<AckReceiver> {
        let mut state = self.lock();
        state.pods.remove(uid);
        let mut acks = Vec::new();
        for connection in &state.connections {
            let (ack, receiver) = oneshot::channel();
            match send(connection, Request::Del { uid: uid.clone(), ack: Some(ack) }) {
                Ok(()) => acks.push(receiver),
                Err(error) => {
                    tracing::warn!(%error, "removal of a pod not sent to an agent; its next snapshot omits the pod")
                }
            }
        }
        acks
    }

    fn report_connected(&self, state: &RegistryState) {
        self.0.metrics.connected.set(i64::try_from(state.connections.len()).unwrap_or(i64::MAX));
    }

    fn lock(&self) -> MutexGuard<'_, RegistryState> {
        // Every change is complete before anything can panic.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send(connection: &Connection, request: Request) -> Result<(), AgentError> {
    connection.requests.try_send(request).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => AgentError::Backlogged(QUEUE),
        mpsc::error::TrySendError::Closed(_) => closed(),
    })
}

fn closed() -> AgentError {
    AgentError::Disconnected("closed".to_owned())
}

impl DataPlane for AgentRegistry {
    fn add<'a>(
        &'a self,
        pod: &'a PodRef,
        netns: Netns,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<(), AgentError>> {
        Box::pin(async move {
            let ack = self.send_add(pod, netns)?;
            match tokio::time::timeout_at(deadline, ack).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(closed()),
                Err(_) => Err(AgentError::TimedOut),
            }
        })
    }

    fn adopt(&self, pod: &PodRef, netns: Option<Netns>) {
        self.lock().pods.insert(pod.uid.clone(), (pod.clone(), netns));
    }

    fn del<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let deadline = Instant::now() + ACK_TIMEOUT;
            for ack in self.send_del(uid) {
                let error = match tokio::time::timeout_at(deadline, ack).await {
                    Ok(Ok(Ok(()))) => continue,
                    Ok(Ok(Err(error))) => error,
                    Ok(Err(_)) => closed(),
                    Err(_) => AgentError::TimedOut,
                };
                tracing::warn!(%error, "removal of a pod not acknowledged by an agent");
            }
        })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = self.registry.lock();
        state.connections.retain(|connection| connection.id != self.id);
        self.registry.report_connected(&state);
    }
}
