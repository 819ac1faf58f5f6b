//! Budgets of the memory that tunnels hold and promise: of the process, of each pod, of each tunnel.
//!
//! Counted are the windows of connections, which bound what peers may make this process hold, what queues occupy beyond
//! that, and what waits to be written. A tunnel's first `FREE` bytes are not counted: they are what HTTP/2 gives every
//! peer unasked. A spent budget costs credit, never bytes. Numbers only: must not know HTTP/2, tunnels or sockets.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

/// What each tunnel may hold uncounted.
const FREE: usize = 64 * 1024;
/// Steps in which a tunnel's use is counted, so that most changes touch no shared counter.
const STEP: usize = 64 * 1024;

/// A limit of memory and its use. Clones share it.
#[derive(Clone)]
pub struct MemoryBudget(Arc<Node>);

struct Node {
    parent: Option<MemoryBudget>,
    /// Bytes.
    limit: usize,
    used: AtomicUsize,
    /// How often more was wanted than there was.
    refusals: AtomicU64,
    /// Is told of each refusal.
    observer: Option<Observer>,
    /// Streams that have ended and whose application is still read from.
    lingering: AtomicUsize,
    has_waiting: AtomicBool,
    /// Owners of tunnels that were refused.
    waiting: Mutex<Vec<Waker>>,
}

type Observer = Box<dyn Fn(&MemoryBudget) + Send + Sync>;

/// Applications of one pod that may linger at a time: each keeps a descriptor and a task.
const MAX_LINGERING: usize = 512;

/// The right to let an application linger, returned on drop.
#[derive(Debug)]
pub(crate) struct LingerPermit(MemoryBudget);

/// What one tunnel uses, by kind.
#[derive(Debug)]
pub(crate) struct Account {
    budget: MemoryBudget,
    /// Bytes that the tunnel may use.
    limit: usize,
    /// The window of the connection: received bytes, and those that the peer may send.
    pub(crate) window: usize,
    /// What queues of received bytes occupy beyond their bytes.
    pub(crate) slack: usize,
    /// Buffers of bytes that wait to be written.
    pub(crate) unwritten: usize,
    /// What of it was counted.
    counted: usize,
}

// === impl MemoryBudget ===

impl MemoryBudget {
    /// The budget of a process, in bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self::with_parent(limit, None, None)
    }

    /// A budget that is never spent.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::new(usize::MAX / 4)
    }

    /// A budget within this one, in bytes: of a pod.
    #[must_use]
    pub fn within(&self, limit: usize) -> Self {
        Self::with_parent(limit, Some(self.clone()), None)
    }

    /// The same; `observer` is called, with a lock held that it must not need, whenever one of its tunnels is refused
    /// what it wants, here or above.
    #[must_use]
    pub fn observed(&self, limit: usize, observer: impl Fn(&Self) + Send + Sync + 'static) -> Self {
        Self::with_parent(limit, Some(self.clone()), Some(Box::new(observer)))
    }

    fn with_parent(limit: usize, parent: Option<Self>, observer: Option<Observer>) -> Self {
        Self(Arc::new(Node {
            parent,
            limit,
            used: AtomicUsize::new(0),
            refusals: AtomicU64::new(0),
            observer,
            lingering: AtomicUsize::new(0),
            has_waiting: AtomicBool::new(false),
            waiting: Mutex::default(),
        }))
    }

    /// Bytes in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.0.used.load(Relaxed)
    }

    /// The budget that this one is a part of.
    #[must_use]
    pub fn parent(&self) -> Option<&Self> {
        self.0.parent.as_ref()
    }

    /// Bytes that may be in use.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// How often a tunnel was refused what it wanted, because this budget was spent or its fair part of it was.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.0.refusals.load(Relaxed)
    }

    /// Whether an eighth or less is left here or above: tunnels get the least that keeps them going.
    #[must_use]
    pub fn is_tight(&self) -> bool {
        let is_tight = self.used() >= self.limit() - self.limit() / 8;
        is_tight || self.0.parent.as_ref().is_some_and(Self::is_tight)
    }

    /// Whether a new user may have as much; tells the observer when not.
    #[must_use]
    pub fn try_use(&self, bytes: usize) -> bool {
        let may = !self.is_tight() && self.allows(0, bytes);
        if !may && let Some(observer) = &self.0.observer {
            observer(self);
        }
        may
    }

    /// Whether one user that has `of_user` may have `more`. It may have half of what it leaves for others, so that a few
    /// greedy ones leave room for the next.
    fn allows(&self, of_user: usize, more: usize) -> bool {
        let free = self.limit().saturating_sub(self.used());
        let fits = of_user.saturating_add(more) <= free / 2;
        if !fits {
            self.0.refusals.fetch_add(1, Relaxed);
        }
        fits && self.0.parent.as_ref().is_none_or(|parent| parent.allows(self.used(), more))
    }

    fn add(&self, bytes: usize) {
        self.0.used.fetch_add(bytes, Relaxed);
        if let Some(parent) = &self.0.parent {
            parent.add(bytes);
        }
    }

    fn subtract(&self, bytes: usize) {
        let before = self.0.used.fetch_sub(bytes, Relaxed);
        if self.0.has_waiting.load(Relaxed) && before - bytes < self.limit() / 4 * 3 {
            self.wake();
        }
        if let Some(parent) = &self.0.parent {
            parent.subtract(bytes);
        }
    }

    fn wake(&self) {
        let waiting = {
            let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            self.0.has_waiting.store(false, Relaxed);
            std::mem::take(&mut *waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Wakes `waker` when this budget or one above has room again. A tunnel that is refused by chance just then is polled
    /// at its next PING.
    fn wait(&self, waker: &Waker) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.iter().any(|known| known.will_wake(waker)) {
            waiting.push(waker.clone());
        }
        self.0.has_waiting.store(true, Relaxed);
        drop(waiting);
        if let Some(parent) = &self.0.parent {
            parent.wait(waker);
        }
    }

    /// The right to let an application of this pod linger; `None` when too many do.
    pub(crate) fn linger(&self) -> Option<LingerPermit> {
        let more = |lingering: usize| (lingering < MAX_LINGERING).then_some(lingering + 1);
        self.0.lingering.fetch_update(Relaxed, Relaxed, more).ok()?;
        Some(LingerPermit(self.clone()))
    }
}

impl Drop for LingerPermit {
    fn drop(&mut self) {
        self.0.0.lingering.fetch_sub(1, Relaxed);
    }
}

impl fmt::Debug for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryBudget({} of {})", self.used(), self.limit())
    }
}

impl PartialEq for MemoryBudget {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for MemoryBudget {}

// === impl Account ===

impl Account {
    /// The account of a tunnel that may use `limit` bytes.
    pub(crate) fn new(budget: &MemoryBudget, limit: usize) -> Self {
        Self { budget: budget.clone(), limit, window: 0, slack: 0, unwritten: 0, counted: 0 }
    }

    /// Whether little is left in a budget above.
    pub(crate) fn is_tight(&self) -> bool {
        self.budget.is_tight()
    }

    /// Whether the window of the connection may become larger by `more`.
    pub(crate) fn may_grow(&self, more: usize) -> bool {
        let used = self.window + self.slack + self.unwritten;
        if used + more > self.limit {
            return false;
        }
        let may = used + more <= FREE || (!self.is_tight() && self.budget.allows(self.counted, more));
        if !may && let Some(observer) = &self.budget.0.observer {
            observer(&self.budget);
        }
        may
    }

    /// Wakes the owner when there is room again.
    pub(crate) fn wait(&self, owner: &Waker) {
        self.budget.wait(owner);
    }

    /// Counts what the tunnel uses now. Small changes are not counted.
    pub(crate) fn settle(&mut self) {
        let used = (self.window + self.slack + self.unwritten).saturating_sub(FREE);
        if used > self.counted {
            let now = used.next_multiple_of(STEP);
            self.budget.add(now - self.counted);
            self.counted = now;
        } else if self.counted - used >= 2 * STEP || (used == 0 && self.counted > 0) {
            let now = used.next_multiple_of(STEP);
            self.budget.subtract(self.counted - now);
            self.counted = now;
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.budget.subtract(self.counted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    fn grow(account: &mut Account, by: usize) -> bool {
        let may = account.may_grow(by);
        if may {
            account.window += by;
            account.settle();
        }
        may
    }

    fn fill(account: &mut Account) -> usize {
        while grow(account, STEP) {}
        account.window
    }

    #[test]
    fn greedy_pods_leave_room_for_the_next() {
        let process = MemoryBudget::new(64 * MIB);
        let pods: Vec<_> = (0..4).map(|_| process.within(32 * MIB)).collect();
        let mut tunnels = Vec::new();
        for pod in &pods {
            for _ in 0..10 {
                let mut tunnel = Account::new(pod, 16 * MIB);
                fill(&mut tunnel);
                tunnels.push(tunnel);
            }
            assert!(pod.used() > 4 * MIB, "{pod:?} of {process:?}");
            assert!(pod.used() <= 32 * MIB && !process.is_tight());
        }
        assert!(pods.iter().any(|pod| pod.refusals() > 0));
        tunnels.clear();
        assert_eq!((process.used(), pods[0].used()), (0, 0));
    }

    #[test]
    fn what_has_to_be_counted_is_counted_and_stops_growth() {
        let process = MemoryBudget::new(8 * MIB);
        let pod = process.within(4 * MIB);
        let (mut stuck, mut other) = (Account::new(&pod, MIB), Account::new(&pod, MIB));
        stuck.unwritten = 5 * MIB;
        stuck.settle();
        assert!(pod.is_tight() && !process.is_tight() && !grow(&mut other, 2 * STEP));
        stuck.unwritten = 0;
        stuck.settle();
        assert!(!pod.is_tight() && grow(&mut other, 2 * STEP));
    }

    #[test]
    fn a_tunnel_that_holds_little_touches_no_shared_counter() {
        let process = MemoryBudget::new(MIB);
        let mut tunnel = Account::new(&process, MIB);
        tunnel.slack = FREE;
        tunnel.settle();
        assert_eq!(process.used(), 0);
        tunnel.slack = FREE + 1;
        tunnel.settle();
        assert_eq!(process.used(), STEP);
        tunnel.slack = FREE - 1;
        tunnel.settle();
        assert_eq!(process.used(), 0);
    }

    #[test]
    fn a_refused_tunnel_is_woken_when_there_is_room() {
        use std::task::Wake;
        struct Woken(AtomicUsize);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Relaxed);
            }
        }
        let woken = Arc::new(Woken(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&woken));
        let pod = MemoryBudget::new(64 * MIB).within(MIB);
        let (mut greedy, refused) = (Account::new(&pod, MIB), Account::new(&pod, MIB));
        greedy.unwritten = MIB;
        greedy.settle();
        assert!(!refused.may_grow(MIB / 2));
        refused.wait(&waker);
        refused.wait(&waker);
        assert_eq!(woken.0.load(Relaxed), 0);
        drop(greedy);
        assert!(woken.0.load(Relaxed) > 0);
    }

    #[test]
    fn so_many_applications_of_a_pod_may_linger() {
        let pod = MemoryBudget::unlimited();
        let permits: Vec<_> = (0..MAX_LINGERING).map(|_| pod.linger().unwrap()).collect();
        assert!(pod.linger().is_none());
        drop(permits);
        assert!(pod.linger().is_some());
    }
}
