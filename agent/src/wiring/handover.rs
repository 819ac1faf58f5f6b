//! The pods' side of a hand-over: which connections an agent gives away, and how it takes others over.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use isthmus_handover::{Item, Metrics, Outcome, Prepared, Receiver, Source, Taken};
use isthmus_model::PodUid;
use isthmus_proxy::handover::{PodHandover, PreparedUnit, TakenUnit, Unit};
use isthmus_rt::BoxFuture;
use isthmus_rt::drain::Drain;
use tokio::time::timeout;

use super::pods::Pods;

/// How long what is under way in a tunnel may take, so that it comes to rest. It carries traffic meanwhile.
const SETTLE: Duration = Duration::from_millis(500);
/// How often the pods are searched: handshakes that were in progress are tunnels later on.
const ROUNDS: usize = 2;
/// How long a unit may take to be made ready. Its connections stand still meanwhile.
const PREPARE: Duration = Duration::from_secs(1);

/// The connections of an agent that ends.
pub(crate) struct Leaving<'a> {
    pods: Arc<Pods>,
    drain: &'a Drain,
    metrics: Arc<Metrics>,
    search: Mutex<Search>,
}

/// What was found and is still to be taken.
#[derive(Default)]
struct Search {
    rounds: usize,
    found: VecDeque<Found>,
}

struct Found {
    uid: PodUid,
    pod: PodHandover,
    unit: Unit,
    is_last_try: bool,
}

struct LeavingUnit {
    uid: PodUid,
    unit: TakenUnit,
}

struct ArrivingUnit(PreparedUnit);

/// The pods of an agent that follows another one.
pub(crate) struct Successor(pub(crate) Arc<Pods>);

// === impl Leaving ===

impl<'a> Leaving<'a> {
    pub(crate) fn new(pods: Arc<Pods>, drain: &'a Drain, metrics: Arc<Metrics>) -> Self {
        Self { pods, drain, metrics, search: Mutex::default() }
    }

    fn find(&self, wanted: &[PodUid]) -> Option<Found> {
        let mut search = self.search.lock().unwrap_or_else(PoisonError::into_inner);
        while search.found.is_empty() && search.rounds < ROUNDS {
            search.rounds += 1;
            let is_last_try = search.rounds == ROUNDS;
            for (uid, pod) in self.pods.handovers(wanted) {
                let lessons = (search.rounds == 1).then(|| pod.lessons());
                let units = lessons.into_iter().chain(pod.units());
                search.found.extend(units.map(|unit| Found {
                    uid: uid.clone(),
                    pod: pod.clone(),
                    unit,
                    is_last_try,
                }));
            }
        }
        search.found.pop_front()
    }
}

impl Source for Leaving<'_> {
    fn close(&self) {
        self.drain.close();
    }

    fn next<'a>(&'a self, pods: &'a [PodUid]) -> BoxFuture<'a, Option<Box<dyn Taken>>> {
        Box::pin(async move {
            loop {
                let Found { uid, pod, unit, is_last_try } = self.find(pods)?;
                let connections = unit.connections();
                match pod.take(unit, SETTLE).await {
                    Ok(unit) => return Some(Box::new(LeavingUnit { uid, unit }) as Box<dyn Taken>),
                    Err(error) => {
                        tracing::debug!(?pod, connections, %error, "connections are not handed over now");
                        if is_last_try {
                            self.metrics.count(Outcome::Kept, connections);
                        }
                    }
                }
            }
        })
    }
}

// === impl LeavingUnit ===

impl Taken for LeavingUnit {
    fn pod(&self) -> &PodUid {
        &self.uid
    }

    fn items(&self) -> &[Item] {
        self.unit.items()
    }

    fn connections(&self) -> usize {
        self.unit.connections()
    }

    fn since(&self) -> Instant {
        self.unit.since()
    }

    fn release(self: Box<Self>) {
        self.unit.release();
    }

    fn restore(self: Box<Self>) {
        if let Err(error) = self.unit.restore() {
            tracing::error!(%error, "connections that were not handed over cannot go on, they are reset");
        }
    }
}

// === impl Successor ===

impl Receiver for Successor {
    fn pods(&self) -> Vec<PodUid> {
        self.0.running()
    }

    fn prepare(&self, pod: PodUid, items: Vec<Item>) -> BoxFuture<'_, Result<Box<dyn Prepared>, String>> {
        Box::pin(async move {
            let found = self.0.handovers(std::slice::from_ref(&pod)).pop();
            let (_, handover) = found.ok_or("the pod is not served here any more")?;
            let prepared = timeout(PREPARE, handover.prepare(items)).await;
            let unit = prepared.map_err(|_| format!("not ready within {PREPARE:?}"))?;
            let unit = unit.map_err(|error| error.to_string())?;
            Ok(Box::new(ArrivingUnit(unit)) as Box<dyn Prepared>)
        })
    }
}

impl Prepared for ArrivingUnit {
    fn connections(&self) -> usize {
        self.0.connections()
    }

    fn run(self: Box<Self>) {
        self.0.run();
    }
}
