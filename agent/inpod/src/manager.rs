//! The ZDS client: connects to the node role, applies its requests to the table of pods, starts and stops pods, acks,
//! and reconnects with backoff. It must not know how a pod is served ([`PodRuntime`]).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::PodRef;
use isthmus_rt::backoff::Backoff;
use isthmus_rt::drain;
use isthmus_rt::ready::{BlockReady, Readiness};
use isthmus_sys::netns::Netns;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::metrics::Metrics;
use crate::pod_list::PodList;
use crate::runtime::{EnrolledPod, PodRuntime, StartError, StopMode};
use crate::table::{AddAction, Entry, PodTable, ProtocolError};
use crate::wire::{self, Request};
use crate::zds::{Connection, RecvError};

/// Name of the readiness gate that is closed until every pod is served that can be; ztunnel's name.
pub const READINESS: &str = "workload proxy manager";

/// Settings of the ZDS client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Path of the ZDS socket on which the node role listens.
    pub uds: PathBuf,
}

/// Why a request is answered with a nack.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    /// Node role and agent disagree about the protocol's state: reconnect.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The pod does not start; it stays pending and is retried.
    #[error("pod {pod} (uid {}) could not be started: {error}", pod.uid)]
    Start { pod: PodRef, error: StartError, retry_in: Option<Duration> },
}

/// Why a connection has ended.
enum ConnectionEnd {
    /// The agent drains.
    Draining,
    /// Something failed: reconnect.
    Lost(ConnectionError),
}

/// Why the agent has no ZDS connection.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    /// The socket does not exist or nothing listens on it.
    #[error("connect: {0}")]
    Connect(io::Error),
    /// An ack could not be sent.
    #[error("send ack: {0}")]
    Send(io::Error),
    /// No valid request could be received.
    #[error(transparent)]
    Receive(RecvError),
    /// A request came out of order.
    #[error(transparent)]
    Protocol(ProtocolError),
}

struct Manager {
    runtime: Arc<dyn PodRuntime>,
    table: PodTable<Netns>,
    pods: PodList,
    metrics: Arc<Metrics>,
    ready: Readiness,
    /// Keeps the agent unready while not every pod is served that can be.
    blocked: Option<BlockReady>,
}

/// Serves the pods that the node role names, until the drain begins. Running pods are not stopped by its end: the
/// runtime drains them.
pub async fn run(
    config: Config,
    runtime: Arc<dyn PodRuntime>,
    pods: PodList,
    ready: Readiness,
    metrics: Arc<Metrics>,
    drain: drain::Watch,
) {
    let blocked = Some(ready.block(READINESS));
    let mut manager = Manager { runtime, table: PodTable::default(), pods, metrics, ready, blocked };
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(15));
    let mut last_error = String::new();
    loop {
        let opened = tokio::select! {
            opened = Connection::open(&config.uds) => opened,
            () = drain.graceful() => return,
        };
        let connect_failed = opened.is_err();
        let error = match opened {
            Ok(connection) => match manager.serve(connection, &mut backoff, &drain).await {
                ConnectionEnd::Draining => return,
                ConnectionEnd::Lost(error) => error,
            },
            Err(error) => ConnectionError::Connect(error),
        };
        let error = error.to_string();
        let retry_in = backoff.next_delay();
        let socket = config.uds.display();
        // One warning per outage, not one per attempt.
        if connect_failed && error == last_error {
            tracing::debug!(%socket, %error, ?retry_in, "still not connected to the node role (ZDS)");
        } else {
            tracing::warn!(%socket, %error, ?retry_in,
                "not connected to the node role (ZDS); running pods are served, new ones are not");
        }
        last_error = error;
        tokio::select! {
            () = tokio::time::sleep(retry_in) => {}
            () = drain.graceful() => return,
        }
    }
}

impl Manager {
    async fn serve(
        &mut self,
        mut connection: Connection,
        backoff: &mut Backoff,
        drain: &drain::Watch,
    ) -> ConnectionEnd {
        tracing::info!("connected to the node role (ZDS)");
        self.table.connected();
        let end = loop {
            let retry_at = self.table.next_retry();
            tokio::select! {
                received = connection.recv() => match received {
                    Ok(request) => {
                        let snapshot = matches!(request, Request::SnapshotSent);
                        if let Err(error) = self.answer(&connection, request).await {
                            break ConnectionEnd::Lost(error);
                        }
                        // A connection counts as good only now: one that fails during its snapshot must not be retried
                        // without backoff.
                        if snapshot {
                            backoff.reset();
                        }
                    }
                    Err(error) => break self.reject(&connection, error).await,
                },
                () = sleep_until(retry_at) => self.retry().await,
                () = drain.graceful() => break ConnectionEnd::Draining,
            }
            self.publish();
        };
        self.table.disconnected();
        self.publish();
        end
    }

    /// Handles a request and acks it; an error ends the connection.
    async fn answer(&mut self, connection: &Connection, request: Request) -> Result<(), ConnectionError> {
        let error = self.handle(request).await.err();
        let text = error.as_ref().map(ToString::to_string);
        connection.send(&wire::ack(text.as_deref())).await.map_err(ConnectionError::Send)?;
        match error {
            Some(RequestError::Protocol(error)) => Err(ConnectionError::Protocol(error)),
            Some(RequestError::Start { pod, error, retry_in }) => {
                warn_not_started(&pod, &error, retry_in);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Nacks what is not a valid request, if the connection still carries a nack, and ends the connection.
    async fn reject(&self, connection: &Connection, error: RecvError) -> ConnectionEnd {
        if matches!(error, RecvError::Truncated | RecvError::BadRequest(_)) {
            // The node role may have closed in the meantime; the reason is logged either way.
            let _ = connection.send(&wire::ack(Some(&error.to_string()))).await;
        }
        ConnectionEnd::Lost(ConnectionError::Receive(error))
    }

    async fn handle(&mut self, request: Request) -> Result<(), RequestError> {
        match request {
            Request::Add { pod, netns } => {
                let span = pod_span(&pod);
                self.add(pod, netns).instrument(span).await
            }
            Request::Keep(uid) => Ok(self.table.keep(uid)?),
            Request::Del(uid) => {
                // Drain, because a pod that leaves the mesh runs on and its connections may finish. Those of a deleted
                // pod end by themselves.
                if let Some(pod) = self.table.del(&uid) {
                    self.stop(&pod, StopMode::Drain).await;
                }
                Ok(())
            }
            Request::SnapshotSent => {
                for pod in self.table.snapshot_sent()? {
                    self.stop(&pod, StopMode::Drain).await;
                }
                Ok(())
            }
        }
    }

    async fn add(&mut self, pod: PodRef, netns: std::os::fd::OwnedFd) -> Result<(), RequestError> {
        let netns = match Netns::from_fd(netns) {
            Ok(netns) => netns,
            Err(error) => {
                return Err(RequestError::Start { pod, error: StartError::Netns(error), retry_in: None });
            }
        };
        match self.table.add(&pod.uid, &netns) {
            AddAction::None => return Ok(()),
            AddAction::Restart => self.stop(&pod, StopMode::Immediate).await,
            AddAction::Start => {}
        }
        self.start(Entry { pod, netns }).await
    }

    async fn start(&mut self, entry: Entry<Netns>) -> Result<(), RequestError> {
        let Entry { pod, netns } = entry.clone();
        let started = self.runtime.start(EnrolledPod { pod: pod.clone(), netns }).await;
        let result = started.as_ref().copied().map_err(|error| (error.whose(), error.to_string().into()));
        let retry_in = self.table.started(entry, result, Instant::now());
        if started.is_ok() {
            self.metrics.started.inc();
            tracing::info!("pod started");
        }
        started.map_err(|error| RequestError::Start { pod, error, retry_in })
    }

    async fn stop(&self, pod: &PodRef, mode: StopMode) {
        let stopping = async {
            self.runtime.stop(&pod.uid, mode).await;
            self.metrics.stopped.inc();
            tracing::info!(?mode, "pod stopped");
        };
        stopping.instrument(pod_span(pod)).await;
    }

    /// Retries the failed starts that are due.
    async fn retry(&mut self) {
        let now = Instant::now();
        while let Some(entry) = self.table.due(now) {
            let span = pod_span(&entry.pod);
            if let Err(RequestError::Start { pod, error, retry_in }) =
                self.start(entry).instrument(span).await
            {
                warn_not_started(&pod, &error, retry_in);
            }
        }
    }

    /// Publishes the table's state to readiness, metrics and the admin endpoint.
    fn publish(&mut self) {
        match (self.table.is_ready(), self.blocked.is_some()) {
            (true, true) => self.blocked = None,
            (false, false) => self.blocked = Some(self.ready.block(READINESS)),
            _ => {}
        }
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.metrics.active.set(count(self.table.running().len()));
        self.metrics.pending.set(count(self.table.pending().len()));
        self.pods.publish(&self.table);
    }
}

/// The span that every event about one pod carries. At error level, so that no filter lets a line through and drops its
/// pod.
fn pod_span(pod: &PodRef) -> tracing::Span {
    tracing::error_span!("pod", namespace = %pod.namespace, name = %pod.name, uid = %pod.uid)
}

fn warn_not_started(pod: &PodRef, error: &StartError, retry_in: Option<Duration>) {
    pod_span(pod).in_scope(|| tracing::warn!(%error, ?retry_in, "pod could not be started"));
}

/// Sleeps until a deadline; for ever when there is none.
async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
