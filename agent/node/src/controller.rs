//! The node role's controller loop: it feeds watch events, the plugin's requests and retries into one work queue and
//! runs the steps that the plan chooses. It owns scheduling; the steps are the enroller's.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt as _};
use isthmus_model::{PodRef, PodUid};
use isthmus_proto::cni::AddEvent;
use isthmus_proto::enroll::{Decision, Rules};
use isthmus_rt::BoxFuture;
use isthmus_rt::drain::Watch;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::enroller::Enroller;
use crate::metrics::{Metrics, Type};
use crate::object_cache::{ObjectCache, ObjectEvent, WatchEvent};
use crate::plan::{Step, next_step};
use crate::plugin_server::{AddError, AddHandler};
use crate::pod::Pod;
use crate::work_queue::{Outcome, WorkItem, WorkQueue};

/// Pods that are worked on at the same time.
const MAX_WORKERS: usize = 16;
/// Plugin requests that may wait for the loop.
const REQUEST_BACKLOG: usize = 64;
/// Deadline of an enrolment. The plugin gives up after five seconds and must receive the reason, and the rollback's
/// result, before that.
const ADD_DEADLINE: Duration = Duration::from_secs(4);
/// When the plugin gets an error because its request was not finished.
const ANSWER_DEADLINE: Duration = Duration::from_millis(4800);
/// How far the watch may lag behind the API server that the plugin has read the pod from.
const WATCH_LAG: Duration = Duration::from_secs(1);

/// A request of the plugin on its way through the loop.
pub(crate) struct AddRequest {
    event: AddEvent,
    deadline: Instant,
    reply: oneshot::Sender<Result<(), AddError>>,
}

/// The plugin server's handle of the loop.
#[derive(Clone)]
pub(crate) struct AddRequests(mpsc::Sender<AddRequest>);

/// The loop. `E` is the stream of watch events.
pub(crate) struct Controller<E> {
    events: E,
    requests: mpsc::Receiver<AddRequest>,
    enroller: Arc<Enroller>,
    rules: Rules,
    metrics: Arc<Metrics>,
    cache: ObjectCache,
    queue: WorkQueue<AddRequest>,
    /// Requests for pods that the watch has not reported yet, or not yet as selected; each with its deadline.
    unmatched: Vec<(Instant, AddRequest)>,
    workers: FuturesUnordered<BoxFuture<'static, (PodUid, Outcome)>>,
}

impl AddRequests {
    /// A channel to a loop.
    pub(crate) fn new() -> (Self, mpsc::Receiver<AddRequest>) {
        let (sender, receiver) = mpsc::channel(REQUEST_BACKLOG);
        (Self(sender), receiver)
    }
}

impl AddHandler for AddRequests {
    fn add(&self, event: AddEvent) -> BoxFuture<'_, Result<(), AddError>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            let start = Instant::now();
            let request = AddRequest { event, deadline: start + ADD_DEADLINE, reply };
            let answered = async {
                self.0.send(request).await.map_err(|_| AddError::Stopping)?;
                answer.await.unwrap_or(Err(AddError::Stopping))
            };
            tokio::time::timeout_at(start + ANSWER_DEADLINE, answered)
                .await
                .unwrap_or(Err(AddError::Overloaded))
        })
    }
}

impl<E: Stream<Item = ObjectEvent> + Unpin> Controller<E> {
    /// A loop with an empty cache.
    pub(crate) fn new(
        events: E,
        requests: mpsc::Receiver<AddRequest>,
        enroller: Arc<Enroller>,
        rules: Rules,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            events,
            requests,
            enroller,
            rules,
            metrics,
            cache: ObjectCache::default(),
            queue: WorkQueue::new(MAX_WORKERS),
            unmatched: Vec::new(),
            workers: FuturesUnordered::new(),
        }
    }

    /// Fills the cache, then adopts the pods that an earlier run has enrolled. The plugin's requests wait meanwhile.
    pub(crate) async fn start(&mut self, reapply_rules: bool) {
        while !self.cache.is_synced() {
            let Some(event) = self.events.next().await else { return };
            self.cache.apply(event);
        }
        let enrolled: Vec<Pod> = self
            .cache
            .pods()
            .filter(|pod| pod.redirection().is_some() && !pod.terminated && !pod.host_network)
            .cloned()
            .collect();
        tracing::info!(pods = enrolled.len(), "adopting pods that are already enrolled");
        self.enroller.adopt(&enrolled, reapply_rules).await;
        let all: Vec<_> = self.cache.pods().map(|pod| pod.pod.uid.clone()).collect();
        all.iter().for_each(|uid| self.queue.enqueue(uid));
    }

    /// Runs until the drain begins; work in progress is finished. `synced` resolves whenever an agent has acknowledged
    /// its snapshot, which may be what partial enrolments wait for.
    /// `losses` are pods that were enrolled and are not captured any more.
    pub(crate) async fn run<F: Future<Output = ()>>(
        mut self,
        synced: impl Fn() -> F,
        mut losses: mpsc::UnboundedReceiver<PodUid>,
        drain: Watch,
    ) {
        loop {
            self.start_workers();
            let deadline = self.next_deadline();
            tokio::select! {
                Some(event) = self.events.next() => self.handle_event(event),
                Some(request) = self.requests.recv() => self.handle_request(request),
                Some((uid, outcome)) = self.workers.next() => self.queue.finish(&uid, outcome, now()),
                Some(uid) = losses.recv() => self.queue.enqueue(&uid),
                () = synced() => self.enroller.partial().iter().for_each(|uid| self.queue.enqueue(uid)),
                () = sleep_until(deadline) => self.reject_expired(),
                () = drain.graceful() => break,
            }
        }
        let finish = async { while self.workers.next().await.is_some() {} };
        tokio::select! {
            () = finish => {}
            () = drain.forced() => {}
        }
    }

    fn handle_event(&mut self, event: ObjectEvent) {
        let kind = match &event {
            ObjectEvent::Pod(WatchEvent::Delete(_)) => "delete",
            ObjectEvent::Pod(_) => "update",
            ObjectEvent::Namespace(_) => "namespace",
        };
        for uid in self.cache.apply(event) {
            self.metrics.reconciled.get_or_create(&Type { r#type: kind }).inc();
            self.queue.enqueue(&uid);
        }
        // The event may be the one that an unmatched request waits for.
        for (until, request) in std::mem::take(&mut self.unmatched) {
            if let Err(request) = self.match_request(request) {
                self.unmatched.push((until, request));
            }
        }
    }

    fn handle_request(&mut self, request: AddRequest) {
        self.metrics.reconciled.get_or_create(&Type { r#type: "add" }).inc();
        if let Err(request) = self.match_request(request) {
            self.unmatched.push((Instant::now() + WATCH_LAG, request));
        }
    }

    /// Queues a request if the cache has its pod as selected, and returns it otherwise: the plugin has read the pod
    /// from the API server, so the watch may only lag.
    fn match_request(&mut self, request: AddRequest) -> Result<(), AddRequest> {
        let AddEvent { pod_namespace, pod_name, .. } = &request.event;
        let Some(pod) = self.cache.startable(pod_namespace, pod_name) else { return Err(request) };
        if self.cache.decide(&self.rules, pod) != Some(Decision::Enrol) {
            return Err(request);
        }
        let uid = pod.pod.uid.clone();
        self.queue.enqueue_request(&uid, request);
        Ok(())
    }

    fn reject_expired(&mut self) {
        let now = Instant::now();
        let (expired, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.unmatched).into_iter().partition(|(until, _)| *until <= now);
        self.unmatched = waiting;
        for (_, request) in expired {
            let reason = self.mismatch(&request.event);
            let _ = request.reply.send(Err(reason));
        }
    }

    /// Why a request has not matched a pod.
    fn mismatch(&self, event: &AddEvent) -> AddError {
        let AddEvent { pod_namespace, pod_name, .. } = event;
        let (namespace, name) = (pod_namespace.clone(), pod_name.clone());
        let pod = self.cache.startable(pod_namespace, pod_name);
        match pod.and_then(|pod| self.cache.decide(&self.rules, pod)) {
            Some(Decision::Skip(reason)) => AddError::NotSelected { namespace, name, reason },
            _ => AddError::UnknownPod { namespace, name },
        }
    }

    fn start_workers(&mut self) {
        while let Some((uid, item)) = self.queue.pop(now()) {
            let pod = self.cache.pod(&uid).cloned();
            let span = pod_span(&uid, pod.as_ref().map(|pod| &pod.pod));
            let work = match item {
                WorkItem::Reconcile => self.reconcile(&uid, pod),
                WorkItem::Add(request) => self.add(pod, request),
            };
            self.workers.push(Box::pin(async move { (uid, work.await) }.instrument(span)));
        }
    }

    fn reconcile(&self, uid: &PodUid, pod: Option<Pod>) -> BoxFuture<'static, Outcome> {
        let decision = pod.as_ref().and_then(|pod| self.cache.decide(&self.rules, pod));
        let (enroller, uid) = (Arc::clone(&self.enroller), uid.clone());
        Box::pin(async move {
            let (state, enrolled_ips) = enroller.state(&uid);
            let step = next_step(pod.as_ref(), decision, state, &enrolled_ips);
            let result = match (step, &pod) {
                (Step::None, _) => return Outcome::Done,
                (Step::Withdraw(reason), _) => enroller.withdraw(&uid, pod.as_ref(), reason).await,
                (Step::Enrol, Some(pod)) => enroller.enrol(pod).await,
                (Step::SyncProbes, Some(pod)) => enroller.sync_probes(pod).await,
                (Step::ClearAnnotation, Some(pod)) => enroller.clear_annotation(pod).await,
                (_, None) => return Outcome::Done,
            };
            match result {
                Ok(()) => {
                    tracing::info!(?step, "pod reconciled");
                    Outcome::Done
                }
                Err(error) => {
                    tracing::warn!(?step, %error, "pod not reconciled, will be retried");
                    Outcome::Requeue
                }
            }
        })
    }

    fn add(&self, pod: Option<Pod>, request: AddRequest) -> BoxFuture<'static, Outcome> {
        let enroller = Arc::clone(&self.enroller);
        Box::pin(async move {
            let AddRequest { event, deadline, reply } = request;
            let Some(pod) = pod else {
                let AddEvent { pod_namespace: namespace, pod_name: name, .. } = event;
                let _ = reply.send(Err(AddError::Deleted { namespace, name }));
                return Outcome::Done;
            };
            if reply.is_closed() {
                tracing::info!("CNI plugin has given up, pod not enrolled");
                return Outcome::Done;
            }
            let ips: Vec<IpAddr> = event.ips.iter().map(|ip| ip.address.ip).collect();
            let result = enroller.add(&pod, &PathBuf::from(event.netns), &ips, deadline).await;
            let result = result.map_err(|error| AddError::Enrol { pod: pod.pod.clone(), error });
            let enrolled = result.is_ok();
            if reply.send(result).is_err() && enrolled {
                tracing::warn!("CNI plugin has given up, rolling the enrolment back");
                enroller.undo_add(&pod).await;
            }
            Outcome::Done
        })
    }

    fn next_deadline(&self) -> Option<Instant> {
        let unmatched = self.unmatched.iter().map(|(until, _)| *until);
        unmatched.chain(self.queue.next_retry().map(Instant::from_std)).min()
    }
}

/// The span that every event about one pod carries; a deleted pod is known by its UID only. At error level, so that no
/// filter lets a line through and drops its pod.
fn pod_span(uid: &PodUid, pod: Option<&PodRef>) -> tracing::Span {
    match pod {
        Some(PodRef { uid, namespace, name, .. }) => tracing::error_span!("pod", %namespace, %name, %uid),
        None => tracing::error_span!("pod", %uid),
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
