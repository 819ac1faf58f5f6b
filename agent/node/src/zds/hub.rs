//! The list of pods that the data plane serves and the list of its connections, changed together, so that no pod can fall
//! between a snapshot and the orders after it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isthmus_model::name::PodUid;
use isthmus_rt::BoxFuture;
use isthmus_sys::netns::Netns;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::session::{self, PATIENCE};
use super::{AgentError, AgentPod, Agents};
use crate::metrics::Metrics;

/// Orders that may wait for one connection.
const QUEUE: usize = 100;

/// Who waits for an answer.
pub(crate) type Ticket = oneshot::Sender<Result<(), AgentError>>;
/// An order with a real namespace in it.
pub(crate) type Order = session::Order<Netns, Ticket>;

/// Pods and connections. Clones share them.
#[derive(Clone)]
pub(crate) struct Hub(Arc<Shared>);

struct Shared {
    inner: Mutex<Inner>,
    synced: Notify,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Inner {
    pods: BTreeMap<PodUid, (AgentPod, Option<Netns>)>,
    /// Oldest first: an agent that takes over connects while its predecessor is still there.
    connections: Vec<Connection>,
    next_id: u64,
}

struct Connection {
    id: u64,
    orders: mpsc::Sender<Order>,
}

/// A connection's place in the hub; given back when dropped.
pub(crate) struct Registered {
    hub: Hub,
    id: u64,
    /// What it is told after its snapshot.
    pub(crate) orders: mpsc::Receiver<Order>,
    /// What it is told first.
    pub(crate) snapshot: Vec<Order>,
}

impl Hub {
    /// No pods and no connections.
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Shared { inner: Mutex::default(), synced: Notify::new(), metrics }))
    }

    /// Makes a connection the newest one, which pods are added to from now on.
    pub(crate) fn register(&self) -> Registered {
        let mut inner = self.lock();
        let (sender, orders) = mpsc::channel(QUEUE);
        let id = inner.next_id;
        inner.next_id += 1;
        inner.connections.push(Connection { id, orders: sender });
        let snapshot = inner
            .pods
            .values()
            .map(|(pod, netns)| match netns {
                Some(netns) => Order::Add { pod: pod.clone(), netns: netns.clone(), ticket: None },
                None => Order::Keep { uid: pod.uid.clone() },
            })
            .collect();
        self.count(&inner);
        Registered { hub: self.clone(), id, orders, snapshot }
    }

    /// A connection has learned its snapshot.
    pub(crate) fn mark_synced(&self) {
        self.0.synced.notify_one();
    }

    /// Resolves when a connection has learned its snapshot since the last call.
    pub(crate) async fn synced(&self) {
        self.0.synced.notified().await;
    }

    fn send_add(
        &self,
        pod: &AgentPod,
        netns: Netns,
    ) -> Result<oneshot::Receiver<Result<(), AgentError>>, AgentError> {
        let mut inner = self.lock();
        inner.pods.insert(pod.uid.clone(), (pod.clone(), Some(netns.clone())));
        let newest = inner.connections.last().ok_or(AgentError::NotConnected)?;
        let (ticket, answer) = oneshot::channel();
        send(newest, Order::Add { pod: pod.clone(), netns, ticket: Some(ticket) })?;
        Ok(answer)
    }

    fn send_del(&self, uid: &PodUid) -> Vec<oneshot::Receiver<Result<(), AgentError>>> {
        let mut inner = self.lock();
        inner.pods.remove(uid);
        let mut answers = Vec::new();
        for connection in &inner.connections {
            let (ticket, answer) = oneshot::channel();
            match send(connection, Order::Del { uid: uid.clone(), ticket: Some(ticket) }) {
                Ok(()) => answers.push(answer),
                Err(error) => {
                    tracing::warn!(uid = %uid, error = %error, "an agent was not told of a removed pod")
                }
            }
        }
        answers
    }

    fn count(&self, inner: &Inner) {
        self.0.metrics.connected.set(i64::try_from(inner.connections.len()).unwrap_or(i64::MAX));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is complete before anything can panic.
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send(connection: &Connection, order: Order) -> Result<(), AgentError> {
    connection.orders.try_send(order).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => AgentError::Behind(QUEUE),
        mpsc::error::TrySendError::Closed(_) => AgentError::Disconnected("closed".to_owned()),
    })
}

impl Agents for Hub {
    fn add<'a>(
        &'a self,
        pod: &'a AgentPod,
        netns: Netns,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<(), AgentError>> {
        Box::pin(async move {
            let answer = self.send_add(pod, netns)?;
            match tokio::time::timeout_at(deadline, answer).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(AgentError::Disconnected("closed".to_owned())),
                Err(_) => Err(AgentError::Late),
            }
        })
    }

    fn adopt(&self, pod: &AgentPod, netns: Option<Netns>) {
        self.lock().pods.insert(pod.uid.clone(), (pod.clone(), netns));
    }

    fn del<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let deadline = Instant::now() + PATIENCE;
            for answer in self.send_del(uid) {
                let error = match tokio::time::timeout_at(deadline, answer).await {
                    Ok(Ok(Ok(()))) => continue,
                    Ok(Ok(Err(error))) => error,
                    Ok(Err(_)) => AgentError::Disconnected("closed".to_owned()),
                    Err(_) => AgentError::Late,
                };
                tracing::warn!(uid = %uid, error = %error, "an agent did not confirm a removed pod");
            }
        })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut inner = self.hub.lock();
        inner.connections.retain(|connection| connection.id != self.id);
        self.hub.count(&inner);
    }
}
