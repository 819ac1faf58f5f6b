//! Connects to the node role, keeps the table true and answers; connects again when the connection ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::PodUid;
use isthmus_rt::backoff::Backoff;
use isthmus_rt::drain;
use isthmus_rt::ready::{BlockReady, Readiness};
use isthmus_sys::netns::Netns;
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::pods::Pods;
use crate::runtime::{Pod, PodInfo, PodRuntime, StartError, Stop};
use crate::table::{Entry, Order, OutOfOrder, Table};
use crate::wire::{self, Request};
use crate::zds::{Connection, RecvError};

/// What the readiness endpoint shows while pods are not all served.
pub const READINESS: &str = "workload proxy manager";

/// Where the node role listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Path of the ZDS socket.
    pub uds: PathBuf,
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    /// The two sides disagree: the connection is made anew.
    #[error(transparent)]
    OutOfOrder(#[from] OutOfOrder),
    /// The pod could not be served; it stays pending.
    #[error("pod {uid} could not be started: {error}")]
    Start { uid: PodUid, error: StartError },
}

/// How a connection ended.
enum Ended {
    /// The shutdown has begun.
    Drained,
    /// It is to be made anew.
    Lost(String),
}

struct Manager {
    runtime: Arc<dyn PodRuntime>,
    table: Table<Netns>,
    pods: Pods,
    metrics: Arc<Metrics>,
    ready: Readiness,
    /// Held while not every pod is served.
    blocked: Option<BlockReady>,
}

/// Serves the pods that the node role names, until the drain begins. Pods are not stopped by its end.
pub async fn run(
    config: Config,
    runtime: Arc<dyn PodRuntime>,
    pods: Pods,
    ready: Readiness,
    metrics: Arc<Metrics>,
    drain: drain::Watch,
) {
    let blocked = Some(ready.block(READINESS));
    let mut manager = Manager { runtime, table: Table::default(), pods, metrics, ready, blocked };
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(15));
    let mut told = String::new();
    loop {
        let opened = tokio::select! {
            opened = Connection::open(&config.uds) => opened,
            () = drain.graceful() => return,
        };
        let failed_again = opened.is_err();
        let lost = match opened {
            Ok(connection) => match manager.serve(connection, &mut backoff, &drain).await {
                Ended::Drained => return,
                Ended::Lost(why) => why,
            },
            Err(error) => format!("connecting failed: {error}"),
        };
        let delay = backoff.next_delay();
        // An outage is one line, not one per attempt.
        if failed_again && lost == told {
            tracing::debug!(socket = %config.uds.display(), retry_in = ?delay, "still no ZDS connection: {lost}");
        } else {
            tracing::warn!(socket = %config.uds.display(), retry_in = ?delay, "no ZDS connection: {lost}");
        }
        told = lost;
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
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
    ) -> Ended {
        tracing::info!("ZDS connected");
        self.table.connected();
        let ended = loop {
            let retry = self.table.next_retry();
            tokio::select! {
                received = connection.recv() => match received {
                    Ok(request) => {
                        let snapshot = matches!(request, Request::SnapshotSent);
                        if let Err(why) = self.answer(&connection, request).await {
                            break Ended::Lost(why);
                        }
                        if snapshot {
                            backoff.reset();
                        }
                    }
                    Err(error) => break self.refuse(&connection, &error).await,
                },
                () = at(retry) => self.retry().await,
                () = drain.graceful() => break Ended::Drained,
            }
            self.show();
        };
        self.table.disconnected();
        self.show();
        ended
    }

    /// Does what is asked and says how it went; an error ends the connection.
    async fn answer(&mut self, connection: &Connection, request: Request) -> Result<(), String> {
        let refusal = self.handle(request).await.err();
        let text = refusal.as_ref().map(ToString::to_string);
        connection
            .send(&wire::answer(text.as_deref()))
            .await
            .map_err(|error| format!("answering failed: {error}"))?;
        match refusal {
            Some(Refusal::OutOfOrder(error)) => Err(error.to_string()),
            Some(Refusal::Start { uid, error }) => {
                tracing::warn!(%uid, "pod could not be started, will be tried again: {error}");
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Answers what was no request, as far as the connection still carries an answer, and gives it up.
    async fn refuse(&self, connection: &Connection, error: &RecvError) -> Ended {
        let text = error.to_string();
        if matches!(error, RecvError::Truncated | RecvError::Bad(_)) {
            // The node role may have closed meanwhile; the reason is logged either way.
            let _ = connection.send(&wire::answer(Some(&text))).await;
        }
        Ended::Lost(text)
    }

    async fn handle(&mut self, request: Request) -> Result<(), Refusal> {
        match request {
            Request::Add { uid, info, netns } => self.add(uid, info, netns).await,
            Request::Keep(uid) => Ok(self.table.keep(uid)?),
            Request::Del(uid) => {
                // What is open may finish: of a pod that only leaves the mesh it can, of one that is gone it ends by itself.
                if self.table.del(&uid) {
                    self.stop(&uid, Stop::Drain).await;
                }
                Ok(())
            }
            Request::SnapshotSent => {
                for uid in self.table.snapshot_sent()? {
                    self.stop(&uid, Stop::Drain).await;
                }
                Ok(())
            }
        }
    }

    async fn add(&mut self, uid: PodUid, info: PodInfo, netns: std::os::fd::OwnedFd) -> Result<(), Refusal> {
        let place = Netns::from_fd(netns).map_err(|error| Refusal::Start {
            uid: uid.clone(),
            error: StartError(format!("what was passed as its network namespace: {error}")),
        })?;
        match self.table.add(&uid, &place) {
            Order::Nothing => return Ok(()),
            Order::Restart => self.stop(&uid, Stop::Now).await,
            Order::Start => {}
        }
        self.start(uid, Entry { info, place }).await
    }

    async fn start(&mut self, uid: PodUid, entry: Entry<Netns>) -> Result<(), Refusal> {
        let Entry { info, place: netns } = entry.clone();
        let started = self.runtime.start(Pod { uid: uid.clone(), info, netns }).await;
        self.table.started(uid.clone(), entry, started.is_ok(), Instant::now());
        if started.is_ok() {
            self.metrics.started.inc();
            tracing::info!(%uid, "pod started");
        }
        started.map_err(|error| Refusal::Start { uid, error })
    }

    async fn stop(&self, uid: &PodUid, how: Stop) {
        self.runtime.stop(uid, how).await;
        self.metrics.stopped.inc();
        tracing::info!(%uid, ?how, "pod stopped");
    }

    /// Starts again what failed to start and is due.
    async fn retry(&mut self) {
        let now = Instant::now();
        while let Some((uid, entry)) = self.table.due(now) {
            if let Err(error) = self.start(uid, entry).await {
                tracing::warn!("{error}");
            }
        }
    }

    /// Tells readiness, metrics and admin how things stand.
    fn show(&mut self) {
        match (self.table.is_ready(), self.blocked.is_some()) {
            (true, true) => self.blocked = None,
            (false, false) => self.blocked = Some(self.ready.block(READINESS)),
            _ => {}
        }
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.metrics.active.set(count(self.table.running().len()));
        self.metrics.pending.set(count(self.table.pending().len()));
        self.pods.show(&self.table);
    }
}

/// Sleeps until then; for ever when there is no then.
async fn at(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}
