//! Budget of the file descriptors of a process, shared out between tenants: in the agent a tenant is a pod.
//!
//! A tenant may hold as many as it leaves for others, so that a few greedy ones leave room for the next. The last quarter is
//! for tenants that hold few: it is divided among all, and within its part of it a tenant is never refused by what others
//! hold. A spent budget costs new connections, never open ones. Numbers only: must not know sockets or what a tenant is.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// The least number of tenants among which the reserve is divided, so that the parts stay as tenants come.
const TENANTS: usize = 32;

/// The descriptors that a process may have open for its tenants. Clones share it.
#[derive(Clone)]
pub struct DescriptorBudget(Arc<Process>);

struct Process {
    limit: usize,
    /// What one tenant may hold at most.
    per_tenant: usize,
    /// What is left to tenants that hold few.
    reserve: usize,
    used: AtomicUsize,
    tenants: AtomicUsize,
    exhaustions: AtomicU64,
}

/// What one tenant may have open. Clones share it.
#[derive(Clone)]
pub struct DescriptorShare(Arc<Tenant>);

struct Tenant {
    process: DescriptorBudget,
    used: AtomicUsize,
    refusals: AtomicU64,
    observer: Option<Observer>,
}

type Observer = Box<dyn Fn(&DescriptorShare) + Send + Sync>;

/// The right to have descriptors open, returned on drop.
#[must_use = "the descriptors count as closed when it is dropped"]
pub struct DescriptorPermit {
    share: DescriptorShare,
    number: usize,
}

// === impl DescriptorBudget ===

impl DescriptorBudget {
    /// A budget of `limit` descriptors, of which one tenant may hold `per_tenant` at most.
    #[must_use]
    pub fn new(limit: usize, per_tenant: usize) -> Self {
        Self::with_reserve(limit, per_tenant, limit / 4)
    }

    /// A budget whose only tenant may have all.
    #[must_use]
    pub fn undivided(limit: usize) -> Self {
        Self::with_reserve(limit, limit, limit)
    }

    /// A budget that is never spent.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::undivided(usize::MAX / 4)
    }

    fn with_reserve(limit: usize, per_tenant: usize, reserve: usize) -> Self {
        Self(Arc::new(Process {
            limit,
            per_tenant,
            reserve,
            used: AtomicUsize::new(0),
            tenants: AtomicUsize::new(0),
            exhaustions: AtomicU64::new(0),
        }))
    }

    /// The share of a tenant. `observer` is called whenever it is refused a descriptor.
    #[must_use]
    pub fn share(&self, observer: impl Fn(&DescriptorShare) + Send + Sync + 'static) -> DescriptorShare {
        self.0.tenants.fetch_add(1, Relaxed);
        let (used, refusals) = (AtomicUsize::new(0), AtomicU64::new(0));
        let observer: Option<Observer> = Some(Box::new(observer));
        DescriptorShare(Arc::new(Tenant { process: self.clone(), used, refusals, observer }))
    }

    /// Descriptors that are open for tenants.
    #[must_use]
    pub fn used(&self) -> usize {
        self.0.used.load(Relaxed)
    }

    /// Descriptors that may be open for tenants.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// How often a tenant was refused though it holds few, or the kernel had no descriptor for one that was admitted.
    #[must_use]
    pub fn exhaustions(&self) -> u64 {
        self.0.exhaustions.load(Relaxed)
    }

    /// Whether there is none left.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.used() >= self.limit()
    }

    /// The kernel has refused a descriptor (`EMFILE`, `ENFILE`).
    pub fn record_exhaustion(&self) {
        self.0.exhaustions.fetch_add(1, Relaxed);
    }

    /// What a tenant is never refused by what others hold.
    fn guaranteed(&self) -> usize {
        if self.0.reserve == self.0.limit {
            return self.0.limit;
        }
        self.0.reserve / self.0.tenants.load(Relaxed).max(TENANTS)
    }

    /// Whether a tenant that holds `of_tenant` may have one more, when all hold `used`.
    fn allows(&self, of_tenant: usize, used: usize) -> bool {
        let shared = self.0.limit - self.0.reserve;
        let fits = of_tenant < self.guaranteed() || of_tenant < shared.saturating_sub(used);
        used < self.0.limit && of_tenant < self.0.per_tenant && fits
    }
}

impl fmt::Debug for DescriptorBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DescriptorBudget({} of {})", self.used(), self.limit())
    }
}

// === impl DescriptorShare ===

impl DescriptorShare {
    /// Counts one descriptor that is to be opened; `None` when the tenant has its share. The observer is told.
    #[must_use]
    pub fn acquire(&self) -> Option<DescriptorPermit> {
        let process = &self.0.process;
        // Counted first: threads that ask at the same time do not exceed the limit together.
        let (of_tenant, used) = (self.0.used.fetch_add(1, Relaxed), process.0.used.fetch_add(1, Relaxed));
        let permit = DescriptorPermit { share: self.clone(), number: 1 };
        if process.allows(of_tenant, used) {
            return Some(permit);
        }
        drop(permit);
        self.0.refusals.fetch_add(1, Relaxed);
        if used >= process.limit() || of_tenant < process.guaranteed().min(process.0.per_tenant) {
            process.record_exhaustion();
        }
        if let Some(observer) = &self.0.observer {
            observer(self);
        }
        None
    }

    /// Counts descriptors that are open in any case.
    pub fn hold(&self, number: usize) -> DescriptorPermit {
        self.0.used.fetch_add(number, Relaxed);
        self.0.process.0.used.fetch_add(number, Relaxed);
        DescriptorPermit { share: self.clone(), number }
    }

    /// Descriptors that are open for the tenant.
    #[must_use]
    pub fn used(&self) -> usize {
        self.0.used.load(Relaxed)
    }

    /// How often it was refused one.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.0.refusals.load(Relaxed)
    }

    /// The budget that it is a part of.
    #[must_use]
    pub fn process(&self) -> &DescriptorBudget {
        &self.0.process
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        self.process.0.tenants.fetch_sub(1, Relaxed);
    }
}

impl fmt::Debug for DescriptorShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DescriptorShare({} of {:?})", self.used(), self.0.process)
    }
}

// === impl DescriptorPermit ===

impl Drop for DescriptorPermit {
    fn drop(&mut self) {
        self.share.0.used.fetch_sub(self.number, Relaxed);
        self.share.0.process.0.used.fetch_sub(self.number, Relaxed);
    }
}

impl fmt::Debug for DescriptorPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DescriptorPermit({})", self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 3584;

    fn share(budget: &DescriptorBudget) -> DescriptorShare {
        budget.share(|_| ())
    }

    /// As many as it gets.
    fn fill(share: &DescriptorShare) -> Vec<DescriptorPermit> {
        std::iter::from_fn(|| share.acquire()).collect()
    }

    #[test]
    fn a_greedy_tenant_leaves_as_much_as_it_has() {
        let budget = DescriptorBudget::new(LIMIT, LIMIT);
        let (greedy, neighbour) = (share(&budget), share(&budget));
        let held = fill(&greedy);
        assert_eq!((held.len(), greedy.refusals(), budget.exhaustions()), (LIMIT * 3 / 8, 1, 0));
        let of_neighbour = fill(&neighbour);
        assert!(of_neighbour.len() >= LIMIT * 3 / 16, "{}", of_neighbour.len());
        assert!(!budget.is_spent());
        drop((held, of_neighbour));
        assert_eq!((budget.used(), greedy.used(), neighbour.used()), (0, 0, 0));
        assert_eq!(fill(&neighbour).len(), LIMIT * 3 / 8);
    }

    #[test]
    fn the_part_of_each_is_kept_whatever_the_others_hold() {
        for tenants in [2, 31, 40, 200] {
            let budget = DescriptorBudget::new(LIMIT, LIMIT);
            let shares: Vec<_> = (0..tenants).map(|_| share(&budget)).collect();
            let part = LIMIT / 4 / tenants.max(TENANTS);
            let (last, others) = shares.split_last().unwrap();
            let held: Vec<_> = others.iter().map(fill).collect();
            let of_last: Vec<_> = (0..part).map_while(|_| last.acquire()).collect();
            assert_eq!(of_last.len(), part, "{tenants} tenants, {budget:?}");
            assert!(held.iter().all(|held| held.len() >= part));
            assert_eq!(budget.exhaustions(), 0);
        }
    }

    #[test]
    fn the_limits_of_the_process_and_of_a_tenant_are_kept() {
        let budget = DescriptorBudget::new(100, 20);
        assert_eq!(fill(&share(&budget)).len(), 20);
        // What is open in any case may exceed them; then even a tenant with nothing is refused, which is an exhaustion.
        let _fixed = share(&budget).hold(100);
        assert!(budget.is_spent() && share(&budget).acquire().is_none());
        assert_eq!(budget.exhaustions(), 1);
    }

    #[test]
    fn the_only_tenant_of_an_undivided_budget_has_all() {
        let budget = DescriptorBudget::undivided(100);
        let only = share(&budget);
        assert_eq!(fill(&only).len(), 100);
        assert_eq!(budget.exhaustions(), 1);
    }

    #[test]
    fn the_observer_is_told_of_each_refusal() {
        let budget = DescriptorBudget::new(100, 1);
        let told = Arc::new(AtomicUsize::new(0));
        let tell = Arc::clone(&told);
        let share = budget.share(move |share| {
            assert_eq!(share.used(), 1);
            tell.fetch_add(1, Relaxed);
        });
        let _permit = share.acquire().unwrap();
        assert!(share.acquire().is_none() && share.acquire().is_none());
        assert_eq!(told.load(Relaxed), 2);
    }
}
