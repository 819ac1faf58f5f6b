//! The handle: many readers, one writer, and a way to wait for the next snapshot. It owns no decision.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use isthmus_model::{PodRef, TrustDomains, Workload};
use tokio::sync::watch;

use crate::batch::{Applied, Batch};
use crate::options::Options;
use crate::snapshot::Snapshot;

/// The state of the mesh. Clones share it.
#[derive(Clone, Debug)]
pub struct State(Arc<SharedState>);

#[derive(Debug)]
struct SharedState {
    current: ArcSwap<Snapshot>,
    /// Held while a push is applied. Older snapshots that somebody still reads wait in here, so that it is the writer
    /// that frees them and never a connection.
    retired: Mutex<Vec<Arc<Snapshot>>>,
    version: watch::Sender<u64>,
}

/// Wakes at every change.
#[derive(Clone, Debug)]
pub struct Changes {
    state: State,
    version: watch::Receiver<u64>,
}

// === impl State ===

impl State {
    /// An empty mesh.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self(Arc::new(SharedState {
            current: ArcSwap::from_pointee(Snapshot::new(options)),
            retired: Mutex::default(),
            version: watch::Sender::new(0),
        }))
    }

    /// The mesh as it is now. Cheap; take it anew for every decision and do not keep it across a wait.
    #[must_use]
    pub fn load(&self) -> Arc<Snapshot> {
        self.0.current.load_full()
    }

    /// Applies a push: the next snapshot is built beside the current one and then takes its place at once.
    pub fn apply(&self, batch: Batch) -> Applied {
        self.change(|next| next.apply(batch))
    }

    fn change(&self, make: impl FnOnce(&mut Snapshot) -> Applied) -> Applied {
        // A panic in here leaves the current snapshot as it was.
        let mut retired = self.0.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.retain(|old| Arc::strong_count(old) > 1);
        let mut next = Snapshot::clone(&self.0.current.load());
        let applied = make(&mut next);
        if applied.is_change() {
            self.publish(next, &mut retired);
        }
        applied
    }

    /// Replaces the names of the mesh's trust domain, by which policies know identities.
    pub fn set_trust_domains(&self, domains: TrustDomains) {
        let mut retired = self.0.retired.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Snapshot::clone(&self.0.current.load());
        if *next.trust_domains != domains {
            next.trust_domains = Arc::new(domains);
            next.version += 1;
            self.publish(next, &mut retired);
        }
    }

    fn publish(&self, next: Snapshot, retired: &mut Vec<Arc<Snapshot>>) {
        let version = next.version;
        let old = self.0.current.swap(Arc::new(next));
        if Arc::strong_count(&old) > 1 {
            retired.push(old);
        }
        self.0.version.send_replace(version);
    }

    /// Wakes at every change from now on.
    #[must_use]
    pub fn subscribe(&self) -> Changes {
        Changes { state: self.clone(), version: self.0.version.subscribe() }
    }

    /// The workload of a pod of this node, waiting for it to arrive for as long as `patience` lasts.
    pub async fn wait_for_pod(&self, pod: &PodRef, patience: Duration) -> Option<Arc<Workload>> {
        if let Some(workload) = self.load().local_workload(pod) {
            return Some(Arc::clone(workload));
        }
        let mut changes = self.subscribe();
        let arrival = async {
            // Subscribed first, looked again after, so that nothing is missed in between.
            let mut snapshot = self.load();
            loop {
                if let Some(workload) = snapshot.local_workload(pod) {
                    return Arc::clone(workload);
                }
                snapshot = changes.next().await;
            }
        };
        tokio::time::timeout(patience, arrival).await.ok()
    }
}

// === impl Changes ===

impl Changes {
    /// The mesh after the next change. Several changes may be seen as one.
    pub async fn next(&mut self) -> Arc<Snapshot> {
        // The sender lives as long as the state that is held here.
        let _ = self.version.changed().await;
        self.state.load()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use crate::route::{Decision, Route};
    use isthmus_model::Facts;
    use std::net::SocketAddr;
    use std::sync::mpsc;

    fn pod() -> PodRef {
        PodRef { uid: "u".into(), name: "a".into(), namespace: "ns".into(), service_account: "sa".into() }
    }

    fn push() -> Batch {
        Batch { upsert_workloads: vec![fixture::pod("a", "10.0.0.1")], ..Batch::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_wakes_when_its_workload_arrives() {
        let state = State::new(Options::default());
        let pod = pod();
        let wait = state.wait_for_pod(&pod, Duration::from_secs(5));
        let arrive = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            state.apply(push());
        };
        let start = tokio::time::Instant::now();
        let (found, ()) = tokio::join!(wait, arrive);
        assert_eq!(found.unwrap().name.as_str(), "a");
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        assert!(state.wait_for_pod(&pod, Duration::ZERO).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_gives_up_at_its_deadline() {
        let state = State::new(Options::default());
        let start = tokio::time::Instant::now();
        assert!(state.wait_for_pod(&pod(), Duration::from_secs(5)).await.is_none());
        assert_eq!(start.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test]
    async fn only_a_real_change_wakes_and_older_snapshots_stay() {
        let state = State::new(Options::default());
        let before = state.load();
        let mut changes = state.subscribe();
        assert_eq!(state.apply(push()).version, 1);
        assert_eq!(changes.next().await.workload_count(), 1);
        assert!(!state.apply(push()).is_change());
        assert!(!changes.version.has_changed().unwrap());
        assert_eq!(before.workload_count(), 0);
        assert_eq!(state.0.retired.lock().unwrap().len(), 1);
        drop(before);
        state.apply(Batch::default());
        assert!(state.0.retired.lock().unwrap().is_empty());
    }

    /// What a connection asks of the mesh: where to, whether, what its pod is, what a name means.
    fn decide(state: &State) -> SocketAddr {
        let (snapshot, mut rng) = (state.load(), fastrand::Rng::with_seed(7));
        let client = fixture::pod("client", "10.9.0.1");
        let vip = ([10, 96, 0, 1], 80).into();
        let resolved = crate::resolve(&snapshot, &client, vip, &fixture::NETWORK.into(), &mut rng);
        let facts =
            Facts { peer: None, source: [10, 9, 0, 1].into(), destination: ([10, 0, 0, 0], 80).into() };
        crate::authorize(&snapshot, &client, &facts).unwrap();
        assert!(snapshot.local_workload(&pod()).is_none());
        assert!(snapshot.service_by_hostname(&"web.ns.svc.cluster.local".into(), None).is_some());
        let Decision::Connect(Route::Hbone(target)) = resolved.decision else { panic!("{resolved:?}") };
        target.addr
    }

    #[test]
    fn a_push_of_a_hundred_thousand_workloads_that_stands_still_half_way_is_felt_by_no_connection() {
        const ALL: u32 = 100_000;
        const PATIENCE: Duration = Duration::from_secs(60);
        let state = State::new(Options::default());
        let web = fixture::service("web", "10.96.0.1");
        let member = |number: u32| {
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + number).to_string();
            fixture::serving(fixture::pod(&format!("w{number}"), &address), &web)
        };
        let part = |numbers: std::ops::Range<u32>| Batch {
            upsert_workloads: numbers.map(member).collect(),
            ..Batch::default()
        };
        let first = Batch { upsert_services: vec![web.clone()], ..part(0..1) };
        state.apply(first);
        let halves = [part(0..ALL / 2), part(ALL / 2..ALL)];
        let ((half, reached), (go, resumed)) = (mpsc::channel(), mpsc::channel());
        let (writer, reader) = (state.clone(), state.clone());
        let applying = std::thread::spawn(move || {
            writer.change(|next| {
                let [first, second] = halves;
                next.apply(first);
                half.send(()).unwrap();
                resumed.recv_timeout(2 * PATIENCE).unwrap();
                next.apply(second)
            })
        });
        reached.recv_timeout(PATIENCE).unwrap();
        // On a thread of its own, so that waiting for the writer would be seen as such.
        let (decided, answer) = mpsc::channel();
        std::thread::spawn(move || decided.send(decide(&reader)));
        let before = answer.recv_timeout(PATIENCE).expect("a connection waited for the push");
        assert_eq!((before, state.load().workload_count()), (([10, 0, 0, 0], 15008).into(), 1));
        assert!(!applying.is_finished());
        go.send(()).unwrap();
        applying.join().unwrap();
        assert_eq!(state.load().workload_count(), usize::try_from(ALL).unwrap());
        assert_ne!(decide(&state), before, "a hundred thousand share the connections now");
    }
}
