//! The handle to the state: many readers, one writer, and a way to wait for the next snapshot. It makes no decisions.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use isthmus_model::{PodRef, TrustDomains, Workload};
use tokio::sync::watch;

use crate::batch::{Applied, Batch};
use crate::options::Options;
use crate::snapshot::Snapshot;

/// The state of the mesh. Clones share it; readers never wait for a writer.
#[derive(Clone, Debug)]
pub struct State(Arc<SharedState>);

#[derive(Debug)]
struct SharedState {
    current: ArcSwap<Snapshot>,
    /// Older snapshots that still had readers when they were replaced. They are kept here so that the writer frees them and
    /// never a connection: freeing 100,000 workloads takes milliseconds. Also the writers' lock.
    retired: Mutex<Vec<Arc<Snapshot>>>,
    version: watch::Sender<u64>,
}

/// Wakes at each change of the state.
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

    /// The current snapshot. Cheap: load it for each decision and do not keep it across an await.
    #[must_use]
    pub fn load(&self) -> Arc<Snapshot> {
        self.0.current.load_full()
    }

    /// Applies a push: the next snapshot is built beside the current one and then replaces it atomically.
    pub fn apply(&self, batch: Batch) -> Applied {
        self.change(|next| next.apply(batch))
    }

    fn change(&self, make: impl FnOnce(&mut Snapshot) -> Applied) -> Applied {
        // A panic while the next snapshot is built leaves the current one in place, so a poisoned lock is harmless.
        let mut retired = self.0.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.retain(|old| Arc::strong_count(old) > 1);
        let mut next = Snapshot::clone(&self.0.current.load());
        let applied = make(&mut next);
        if applied.is_change() {
            self.publish(next, &mut retired);
        }
        applied
    }

    /// Replaces the trust domain of the mesh and its aliases, which policies match identities by.
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

    /// Subscribes to the changes from now on.
    #[must_use]
    pub fn subscribe(&self) -> Changes {
        Changes { state: self.clone(), version: self.0.version.subscribe() }
    }

    /// The workload of a pod of this node; waits up to `timeout` for the control plane to send it.
    pub async fn wait_for_pod(&self, pod: &PodRef, timeout: Duration) -> Option<Arc<Workload>> {
        if let Some(workload) = self.load().local_workload(pod) {
            return Some(Arc::clone(workload));
        }
        let mut changes = self.subscribe();
        let arrival = async {
            // Load after subscribing, so that no change in between is missed.
            let mut snapshot = self.load();
            loop {
                if let Some(workload) = snapshot.local_workload(pod) {
                    return Arc::clone(workload);
                }
                snapshot = changes.next().await;
            }
        };
        tokio::time::timeout(timeout, arrival).await.ok()
    }
}

// === impl Changes ===

impl Changes {
    /// The snapshot after the next change. Several changes may be seen as one.
    pub async fn next(&mut self) -> Arc<Snapshot> {
        // Cannot fail: `self.state` keeps the sender alive.
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
    async fn wait_for_pod_returns_when_the_workload_arrives() {
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
    async fn wait_for_pod_ends_at_its_timeout() {
        let state = State::new(Options::default());
        let start = tokio::time::Instant::now();
        assert!(state.wait_for_pod(&pod(), Duration::from_secs(5)).await.is_none());
        assert_eq!(start.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test]
    async fn only_a_change_wakes_subscribers_and_older_snapshots_stay_valid() {
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

    /// The decisions that a connection needs: route, authorization, its own workload, a name.
    fn decide(state: &State) -> SocketAddr {
        let (snapshot, mut rng) = (state.load(), fastrand::Rng::with_seed(7));
        let client = fixture::pod("client", "10.9.0.1");
        let vip = ([10, 96, 0, 1], 80).into();
        let resolved = crate::resolve(&snapshot, &client, vip, &fixture::NETWORK.into(), &mut rng);
        let facts =
            Facts { peer: None, source: [10, 9, 0, 1].into(), destination: ([10, 0, 0, 0], 80).into() };
        crate::authorize(&snapshot, &client, &facts).unwrap();
        assert!(snapshot.local_workload(&pod()).is_none());
        assert!(snapshot.service_by_hostname(&"web.ns.svc.cluster.local".into(), 80, None).is_some());
        let Decision::Connect(Route::Hbone(target)) = resolved.decision else { panic!("{resolved:?}") };
        target.addr
    }

    #[test]
    fn readers_do_not_wait_for_a_push_that_is_half_applied() {
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
        // On a thread of its own, so that a reader that waits for the writer fails the test instead of hanging it.
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
