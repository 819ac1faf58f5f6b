//! Deficit round robin over tenants: credit, active list and queues. No clock, task or runtime of its own; `W` is what
//! is called to let a waiter run.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

/// CPU time that each active tenant may spend per round. Deficit round robin wants a quantum no smaller than a usual
/// packet, so that every round serves every tenant: the longest usual poll is the one that signs and verifies in a TLS
/// handshake. It is also what a neighbour waits for, so it is no larger than that.
pub const QUANTUM: Duration = Duration::from_nanos(QUANTUM_NANOS.unsigned_abs());
const QUANTUM_NANOS: i64 = 500_000;

/// What one poll is charged at most, in quanta. A poll that took longer was, most likely, preempted: the clock says how
/// long it took, not how long it ran. It bounds how many rounds a tenant can be kept out for.
const MAX_CHARGE: i64 = 4;

/// Looks of [`RunQueue::end_round`] for which one wake-up keeps a round open: the task may be behind as many of the
/// runtime's event intervals (61 tasks each). It is limited, since a waker may be called whose task is gone.
const WAKE_LASTS: u8 = 16;

/// A tenant's credit, in nanoseconds: read and charged without a lock. Below zero it is a debt.
#[derive(Debug)]
pub(super) struct CpuCredit {
    id: u64,
    balance: AtomicI64,
    /// Waiters in the tenant's queue, and those released from it that have not run yet.
    backlog: AtomicUsize,
    /// On the active list. Changed under the queue's lock only.
    active: AtomicBool,
    /// [`IDLE`], [`RUNNING`], or for how many looks at the end of the round it counts as runnable. Tasks that run in
    /// parallel overwrite each other's: it decides when a round ends, not who is charged.
    activity: AtomicU8,
}

/// No task of the tenant was woken or polled lately.
const IDLE: u8 = 0;
/// A task was polled since the last look. It may have yielded, which the runtime tells no waker before the next look.
const POLLED: u8 = 1;
/// A task is being polled on another thread than the caller's; it is not a waiter.
const RUNNING: u8 = u8::MAX;

/// Names a waiter in its tenant's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// Why a task cannot run now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wait {
    pub(super) ticket: Ticket,
    /// Only the end of the round lets it run.
    pub(super) is_stalled: bool,
}

/// The waiter that may run after the poll of a released one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Next<W> {
    pub(super) released: Option<W>,
    /// Others of the tenant wait for the end of the round.
    pub(super) is_stalled: bool,
}

/// What the look at the end of a round found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Round<W> {
    pub(super) released: Vec<W>,
    /// A tenant waits for the end of this round, which others still use.
    pub(super) is_awaited: bool,
}

/// CPU time charged so far: to one tenant, and to all others.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Charged {
    pub(super) own: Duration,
    pub(super) others: Duration,
}

/// The tenants, and those of their tasks that wait.
#[derive(Debug)]
pub(super) struct RunQueue<W> {
    tenants: BTreeMap<u64, Tenant<W>>,
    /// Tenants that were runnable in this round.
    active: Vec<u64>,
    next_id: u64,
}

#[derive(Debug)]
struct Tenant<W> {
    credit: Arc<CpuCredit>,
    /// By ticket, ascending.
    waiting: VecDeque<(Ticket, W)>,
    /// Woken to run, and not finished.
    released: usize,
    /// What was granted in all.
    granted: i64,
}

// === impl CpuCredit ===

impl CpuCredit {
    /// Whether a task may run without a look at the queue.
    pub(super) fn try_acquire(&self) -> bool {
        let may = self.balance() > 0
            && self.backlog.load(Ordering::Relaxed) == 0
            && self.active.load(Ordering::Relaxed);
        if may {
            self.start_poll();
        }
        may
    }

    fn start_poll(&self) {
        self.activity.store(RUNNING, Ordering::Relaxed);
    }

    /// A poll has ended, and took so long.
    pub(super) fn charge(&self, time: Duration) {
        if self.activity.load(Ordering::Relaxed) == RUNNING {
            self.activity.store(POLLED, Ordering::Relaxed);
        }
        let time = i64::try_from(time.as_nanos()).unwrap_or(i64::MAX).min(MAX_CHARGE * QUANTUM_NANOS);
        self.balance.fetch_sub(time, Ordering::Relaxed);
    }

    /// A task was woken.
    pub(super) fn mark_runnable(&self) {
        // Read first: what is set already stays in the cache of every thread.
        if self.activity.load(Ordering::Relaxed) != WAKE_LASTS {
            self.activity.store(WAKE_LASTS, Ordering::Relaxed);
        }
    }

    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    fn balance(&self) -> i64 {
        self.balance.load(Ordering::Relaxed)
    }

    /// Whether tasks of the tenant wait for a thread while they may run. Each look counts.
    fn uses_round(&self) -> bool {
        let activity = self.activity.load(Ordering::Relaxed);
        if self.balance() <= 0 || matches!(activity, IDLE | RUNNING) {
            return false;
        }
        self.activity.store(activity - 1, Ordering::Relaxed);
        true
    }

    fn is_idle(&self) -> bool {
        self.balance() > 0 && self.activity.load(Ordering::Relaxed) == IDLE
    }
}

// === impl Tenant ===

impl<W> Tenant<W> {
    /// One round's quantum. Unspent credit is not saved for later rounds.
    fn replenish(&mut self) {
        let balance = self.credit.balance();
        self.grant((balance + QUANTUM_NANOS).min(QUANTUM_NANOS) - balance);
    }

    /// A whole quantum to spend, whatever was owed.
    fn forgive(&mut self) {
        self.grant(QUANTUM_NANOS - self.credit.balance());
    }

    fn grant(&mut self, nanos: i64) {
        self.credit.balance.fetch_add(nanos, Ordering::Relaxed);
        self.granted += nanos;
    }

    /// One waiter at a time, since one thread runs them.
    fn release(&mut self) -> Option<W> {
        let may_run = self.released == 0 && self.credit.balance() > 0;
        let released = if may_run { self.waiting.pop_front() } else { None };
        if released.is_some() {
            self.released = 1;
            self.credit.mark_runnable();
        }
        self.update_backlog();
        released.map(|(_, waiter)| waiter)
    }

    fn update_backlog(&self) {
        self.credit.backlog.store(self.waiting.len() + self.released, Ordering::Relaxed);
    }

    /// Waiters that nothing but the end of the round releases.
    fn is_stalled(&self) -> bool {
        !self.waiting.is_empty() && self.released == 0
    }

    fn position(&self, ticket: Ticket) -> Option<usize> {
        self.waiting.binary_search_by_key(&ticket, |(ticket, _)| *ticket).ok()
    }
}

// === impl RunQueue ===

impl<W: Clone> RunQueue<W> {
    /// An empty queue.
    pub(super) fn new() -> Self {
        Self { tenants: BTreeMap::new(), active: Vec::new(), next_id: 0 }
    }

    pub(super) fn add_tenant(&mut self) -> Arc<CpuCredit> {
        let id = self.next_id();
        let credit = Arc::new(CpuCredit {
            id,
            balance: QUANTUM_NANOS.into(),
            backlog: 0.into(),
            active: false.into(),
            activity: IDLE.into(),
        });
        let tenant = Tenant {
            credit: Arc::clone(&credit),
            waiting: VecDeque::new(),
            released: 0,
            granted: QUANTUM_NANOS,
        };
        self.tenants.insert(id, tenant);
        credit
    }

    /// Removes a tenant; its waiters are no longer held back.
    pub(super) fn remove_tenant(&mut self, credit: &CpuCredit) -> Vec<W> {
        self.active.retain(|id| *id != credit.id);
        let tenant = self.tenants.remove(&credit.id);
        tenant.into_iter().flat_map(|tenant| tenant.waiting).map(|(_, waiter)| waiter).collect()
    }

    /// Puts a tenant on the active list, with a fresh quantum unless it is in debt.
    pub(super) fn activate(&mut self, credit: &CpuCredit) {
        let Some(tenant) = self.tenants.get_mut(&credit.id) else { return };
        if !credit.active.swap(true, Ordering::Relaxed) {
            tenant.replenish();
            self.active.push(credit.id);
        }
    }

    /// A task of a tenant asks to run.
    ///
    /// # Errors
    /// When it has to wait: `waiter` is in the queue then.
    pub(super) fn acquire(&mut self, credit: &CpuCredit, waiter: &W) -> Result<(), Wait> {
        self.activate(credit);
        let (is_alone, ticket) = (self.active.len() <= 1, Ticket(self.next_id()));
        let Some(tenant) = self.tenants.get_mut(&credit.id) else { return Ok(()) };
        if tenant.waiting.is_empty() && tenant.released == 0 {
            if is_alone && credit.balance() <= 0 {
                tenant.forgive();
            }
            if credit.balance() > 0 {
                credit.start_poll();
                return Ok(());
            }
        }
        tenant.waiting.push_back((ticket, waiter.clone()));
        tenant.update_backlog();
        // Told once: the end of the round is awaited from then on.
        let is_stalled = tenant.is_stalled() && tenant.waiting.len() == 1;
        Err(Wait { ticket, is_stalled })
    }

    /// Whether a waiter still waits. If so, `waiter` takes its place; if not, it was released and may run.
    pub(super) fn is_queued(&mut self, credit: &CpuCredit, ticket: Ticket, waiter: &W) -> bool {
        let tenant = self.tenants.get_mut(&credit.id);
        let place = tenant.and_then(|tenant| {
            let at = tenant.position(ticket)?;
            tenant.waiting.get_mut(at)
        });
        let Some((_, place)) = place else {
            credit.start_poll();
            return false;
        };
        place.clone_from(waiter);
        true
    }

    /// Removes a waiter; `None` when it was released before, which calls for [`RunQueue::finish`].
    pub(super) fn cancel(&mut self, credit: &CpuCredit, ticket: Ticket) -> Option<W> {
        let tenant = self.tenants.get_mut(&credit.id)?;
        let at = tenant.position(ticket)?;
        let (_, waiter) = tenant.waiting.remove(at)?;
        tenant.update_backlog();
        Some(waiter)
    }

    /// A released waiter has run and was charged, or will not run.
    pub(super) fn finish(&mut self, credit: &CpuCredit) -> Next<W> {
        let is_alone = self.active.len() <= 1;
        let Some(tenant) = self.tenants.get_mut(&credit.id) else {
            return Next { released: None, is_stalled: false };
        };
        tenant.released = tenant.released.saturating_sub(1);
        if is_alone && credit.balance() <= 0 {
            tenant.forgive();
        }
        let released = tenant.release();
        Next { released, is_stalled: tenant.is_stalled() }
    }

    /// Ends the round if every active tenant has spent its quantum or has nothing to run. Called when the runtime has
    /// polled what it could and knows what is ready.
    pub(super) fn end_round(&mut self) -> Round<W> {
        let Self { tenants, active, .. } = self;
        let is_awaited = active.iter().filter_map(|id| tenants.get(id)).any(Tenant::is_stalled);
        // Each tenant is looked at, whatever was found before it: looks count.
        let in_use =
            active.iter().filter_map(|id| tenants.get(id)).filter(|one| one.credit.uses_round()).count();
        if !is_awaited || in_use > 0 {
            return Round { released: Vec::new(), is_awaited };
        }
        let mut released = Vec::new();
        active.retain(|id| {
            let Some(tenant) = tenants.get_mut(id) else { return false };
            let is_idle = tenant.waiting.is_empty() && tenant.released == 0 && tenant.credit.is_idle();
            tenant.credit.active.store(!is_idle, Ordering::Relaxed);
            tenant.replenish();
            released.extend(tenant.release());
            !is_idle
        });
        Round { released, is_awaited: active.iter().filter_map(|id| tenants.get(id)).any(Tenant::is_stalled) }
    }

    /// CPU time that was charged to a tenant, and to the others that exist.
    pub(super) fn charged(&self, credit: &CpuCredit) -> Charged {
        let mut charged = Charged::default();
        for (id, tenant) in &self.tenants {
            let time =
                Duration::from_nanos(u64::try_from(tenant.granted - tenant.credit.balance()).unwrap_or(0));
            *(if *id == credit.id { &mut charged.own } else { &mut charged.others }) += time;
        }
        charged
    }

    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

#[cfg(test)]
mod tests;
