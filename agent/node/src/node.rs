//! The node role's loop: it brings watch events, the plugin's requests and retries to one queue, and carries out what the
//! queue and the plan say. Owns no step of enrolment.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt as _};
use isthmus_model::name::PodUid;
use isthmus_proto::cni::AddEvent;
use isthmus_proto::enroll::{Decision, Rules};
use isthmus_rt::BoxFuture;
use isthmus_rt::drain::Watch;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::mesh::Mesh;
use crate::metrics::{Metrics, Type};
use crate::plan::{Plan, plan};
use crate::plugin_server::Capture;
use crate::pod::Pod;
use crate::reconcile::{Outcome, Reconcile, Turn};
use crate::view::{Event, View};

/// Pods that are worked on at the same time.
const CONCURRENT: usize = 16;
/// Requests of the plugin that may wait for the loop.
const BACKLOG: usize = 64;
/// The plugin gives up after five seconds. It should hear our reason before that, and undoing takes its time too.
const PLUGIN_WAITS: Duration = Duration::from_secs(4);
/// When the plugin is told that nobody got to its request.
const PLUGIN_ANSWERED: Duration = Duration::from_millis(4800);
/// How far the watch may lag behind the API server that the plugin has asked.
const WATCH_LAG: Duration = Duration::from_secs(1);

/// A request of the plugin on its way through the loop.
pub(crate) struct Request {
    event: AddEvent,
    deadline: Instant,
    reply: oneshot::Sender<Result<(), String>>,
}

/// The plugin server's end of the loop.
#[derive(Clone)]
pub(crate) struct Requests(mpsc::Sender<Request>);

/// The loop.
pub(crate) struct Node<E> {
    events: E,
    requests: mpsc::Receiver<Request>,
    mesh: Arc<Mesh>,
    rules: Rules,
    metrics: Arc<Metrics>,
    view: View,
    queue: Reconcile<Request>,
    /// Requests for pods that the watch has not named yet, or not yet as pods of the mesh.
    unknown: Vec<(Instant, Request)>,
    turns: FuturesUnordered<BoxFuture<'static, (PodUid, Outcome)>>,
}

impl Requests {
    /// A channel to a loop.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Request>) {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        (Self(sender), receiver)
    }
}

impl Capture for Requests {
    fn capture(&self, event: AddEvent) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            let start = Instant::now();
            let request = Request { event, deadline: start + PLUGIN_WAITS, reply };
            let stopping = || "the node role is stopping".to_owned();
            let answered = async {
                self.0.send(request).await.map_err(|_| stopping())?;
                answer.await.unwrap_or_else(|_| Err(stopping()))
            };
            tokio::time::timeout_at(start + PLUGIN_ANSWERED, answered)
                .await
                .unwrap_or_else(|_| Err("the node role is not ready, or has too much to do".to_owned()))
        })
    }
}

impl<E: Stream<Item = Event> + Unpin> Node<E> {
    /// A loop that knows nothing yet.
    pub(crate) fn new(
        events: E,
        requests: mpsc::Receiver<Request>,
        mesh: Arc<Mesh>,
        rules: Rules,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            events,
            requests,
            mesh,
            rules,
            metrics,
            view: View::default(),
            queue: Reconcile::new(CONCURRENT),
            unknown: Vec::new(),
            turns: FuturesUnordered::new(),
        }
    }

    /// Reads both watches once, then takes over what an earlier run has enrolled. The plugin's requests wait meanwhile.
    pub(crate) async fn start(&mut self, reconcile: bool) {
        while !self.view.is_synced() {
            let Some(event) = self.events.next().await else { return };
            self.view.apply(event);
        }
        let enrolled: Vec<Pod> = self
            .view
            .pods()
            .filter(|pod| pod.redirection().is_some() && !pod.terminated && !pod.host_network)
            .cloned()
            .collect();
        tracing::info!(pods = enrolled.len(), "taking over the pods that are already enrolled");
        self.mesh.adopt(&enrolled, reconcile).await;
        let all: Vec<_> = self.view.pods().map(|pod| pod.uid.clone()).collect();
        all.iter().for_each(|uid| self.queue.touch(uid));
    }

    /// Runs until the drain begins; turns that have begun are finished. `synced` resolves whenever an agent has connected.
    pub(crate) async fn run<F: Future<Output = ()>>(mut self, synced: impl Fn() -> F, drain: Watch) {
        loop {
            self.begin_turns();
            let wake = self.wake_at();
            tokio::select! {
                Some(event) = self.events.next() => self.event(event),
                Some(request) = self.requests.recv() => self.request(request),
                Some((uid, outcome)) = self.turns.next() => self.queue.done(&uid, outcome, now()),
                () = synced() => self.mesh.unfinished().iter().for_each(|uid| self.queue.touch(uid)),
                () = sleep_until(wake) => self.expire(),
                () = drain.graceful() => break,
            }
        }
        let finish = async { while self.turns.next().await.is_some() {} };
        tokio::select! {
            () = finish => {}
            () = drain.forced() => {}
        }
    }

    fn event(&mut self, event: Event) {
        let kind = match &event {
            Event::Pod(crate::view::Watched::Deleted(_)) => "delete",
            Event::Pod(_) => "update",
            Event::Namespace(_) => "namespace",
        };
        for uid in self.view.apply(event) {
            self.metrics.reconciled.get_or_create(&Type { r#type: kind }).inc();
            self.queue.touch(&uid);
        }
        // One of the pods that were not known may be known now.
        for (until, request) in std::mem::take(&mut self.unknown) {
            if let Err(request) = self.claim(request) {
                self.unknown.push((until, request));
            }
        }
    }

    fn request(&mut self, request: Request) {
        self.metrics.reconciled.get_or_create(&Type { r#type: "add" }).inc();
        if let Err(request) = self.claim(request) {
            self.unknown.push((Instant::now() + WATCH_LAG, request));
        }
    }

    /// Queues a request if its pod is known to belong to the mesh, and gives it back if not: the plugin has asked the API
    /// server, so the watch may only be late.
    fn claim(&mut self, request: Request) -> Result<(), Request> {
        let AddEvent { pod_namespace, pod_name, .. } = &request.event;
        let Some(pod) = self.view.startable(pod_namespace, pod_name) else { return Err(request) };
        if self.view.decide(&self.rules, pod) != Some(Decision::Enrol) {
            return Err(request);
        }
        let uid = pod.uid.clone();
        self.queue.add(&uid, request);
        Ok(())
    }

    fn expire(&mut self) {
        let now = Instant::now();
        let (late, still): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.unknown).into_iter().partition(|(until, _)| *until <= now);
        self.unknown = still;
        for (_, request) in late {
            let reason = self.unclaimed(&request.event);
            let _ = request.reply.send(Err(reason));
        }
    }

    /// Why nobody has claimed a request.
    fn unclaimed(&self, event: &AddEvent) -> String {
        let AddEvent { pod_namespace, pod_name, .. } = event;
        let pod = self.view.startable(pod_namespace, pod_name);
        match pod.and_then(|pod| self.view.decide(&self.rules, pod)) {
            Some(Decision::Skip(reason)) => {
                format!("pod {pod_namespace}/{pod_name} does not belong to the mesh: {reason}")
            }
            _ => format!("pod {pod_namespace}/{pod_name} is not known on this node"),
        }
    }

    fn begin_turns(&mut self) {
        while let Some((uid, turn)) = self.queue.next(now()) {
            let turn = match turn {
                Turn::Look => self.look(&uid),
                Turn::Add(request) => self.add(&uid, request),
            };
            let done = Box::pin(async move { (uid, turn.await) });
            self.turns.push(done);
        }
    }

    fn look(&self, uid: &PodUid) -> BoxFuture<'static, Outcome> {
        let pod = self.view.pod(uid).cloned();
        let decision = pod.as_ref().and_then(|pod| self.view.decide(&self.rules, pod));
        let (mesh, uid) = (Arc::clone(&self.mesh), uid.clone());
        Box::pin(async move {
            let (standing, held) = mesh.standing(&uid);
            let step = plan(pod.as_ref(), decision, standing, &held);
            let result = match (step, &pod) {
                (Plan::Nothing, _) => return Outcome::Settled,
                (Plan::Withdraw(leaving), _) => mesh.withdraw(&uid, pod.as_ref(), leaving).await,
                (Plan::Enrol, Some(pod)) => mesh.enrol(pod).await,
                (Plan::SyncProbes, Some(pod)) => mesh.sync_probes(pod).await,
                (Plan::ClearAnnotation, Some(pod)) => mesh.clear_annotation(pod).await,
                (_, None) => return Outcome::Settled,
            };
            let name = pod.map_or_else(|| uid.to_string(), |pod| pod.to_string());
            match result {
                Ok(()) => {
                    tracing::info!(pod = %name, step = ?step, "reconciled");
                    Outcome::Settled
                }
                Err(error) => {
                    tracing::warn!(pod = %name, step = ?step, error = %error, "will be tried again");
                    Outcome::Retry
                }
            }
        })
    }

    fn add(&self, uid: &PodUid, request: Request) -> BoxFuture<'static, Outcome> {
        let pod = self.view.pod(uid).cloned();
        let mesh = Arc::clone(&self.mesh);
        Box::pin(async move {
            let Request { event, deadline, reply } = request;
            let Some(pod) = pod else {
                let _ = reply.send(Err(format!("pod {}/{} is deleted", event.pod_namespace, event.pod_name)));
                return Outcome::Settled;
            };
            if reply.is_closed() {
                tracing::info!(pod = %pod, "the plugin has given up");
                return Outcome::Settled;
            }
            let ips: Vec<IpAddr> = event.ips.iter().map(|ip| ip.address.ip).collect();
            let result = mesh.add(&pod, &PathBuf::from(event.netns), &ips, deadline).await;
            let result = result.map_err(|error| format!("pod {pod}: {error}"));
            let captured = result.is_ok();
            if reply.send(result).is_err() && captured {
                tracing::warn!(pod = %pod, "the plugin has given up; the enrolment is taken back");
                mesh.undo_add(&pod).await;
            }
            Outcome::Settled
        })
    }

    fn wake_at(&self) -> Option<Instant> {
        let unknown = self.unknown.iter().map(|(until, _)| *until);
        unknown.chain(self.queue.wake_at().map(Instant::from_std)).min()
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
