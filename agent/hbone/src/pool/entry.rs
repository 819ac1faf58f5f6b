//! One key's tunnels, without I/O and without a clock: which tunnel a caller uses, who dials, and who waits.
//!
//! ```text
//!             checkout
//!                │ a tunnel is lightly loaded ───────► Use
//!                │ all tunnels with room are loaded ─► Grow ──dial_succeeded──► one more tunnel
//!                │ ... and more would be of no use ──► Use     dial_failed────► no growth for a while
//!                │ a dial in progress will have room ► Wait ──dial_succeeded──► granted
//!                └ otherwise ────────────────────────► Dial    dial_failed────► failed, too
//!                                                              dial_abandoned ► the longest waiting caller dials
//! ```
//!
//! The oldest lightly loaded tunnel is used, not the one with the fewest streams: when the load is over, tunnels that were
//! added because of it get no more streams, and expire.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// A tunnel as the entry sees it.
pub(super) trait PooledTunnel: Clone {
    /// The right to one stream.
    type Permit;
    /// Whether streams can be opened, now or later.
    fn is_alive(&self) -> bool;
    /// Streams in use.
    fn active(&self) -> usize;
    /// Since when no stream is in use; `None` while one is.
    fn idle_since(&self) -> Option<Instant>;
    /// CPU time of the owner task in thousandths of a core; at most about 1000.
    fn cpu_permille(&self) -> u64;
    /// Reserves a stream if there is room.
    fn reserve(&self) -> Option<Self::Permit>;
}

/// When load is a reason to add a tunnel.
#[derive(Debug, Clone, Copy)]
pub(super) struct GrowthPolicy {
    /// Streams that a new tunnel will carry.
    pub(super) streams_per_tunnel: usize,
    /// Tunnels up to which load alone is a reason for one more.
    pub(super) tunnels: usize,
    /// A tunnel with this many streams is loaded.
    pub(super) busy_streams: usize,
    /// A tunnel whose owner uses this much CPU is loaded, too.
    pub(super) busy_cpu_permille: u64,
}

/// How long no tunnel is added because of load after one could not be dialled.
const GROWTH_PAUSE: Duration = Duration::from_secs(30);

/// One key's tunnels. `W` is the channel to a waiting caller.
#[derive(Debug)]
pub(super) struct Entry<T, W> {
    tunnels: Vec<T>,
    /// Dials in progress.
    dials: usize,
    waiting: VecDeque<W>,
    policy: GrowthPolicy,
    no_growth_until: Option<Instant>,
    retired: bool,
}

/// What a caller does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Checkout<T, P> {
    /// Open its stream here.
    Use(T, P),
    /// Open its stream here; and a task of the pool dials another tunnel and reports the result.
    Grow(T, P),
    /// Dial, and report the result.
    Dial,
    /// Wait: it was queued.
    Wait,
    /// Look up the key again: this entry was removed from the pool.
    Retired,
}

impl<T: PooledTunnel, W> Entry<T, W> {
    pub(super) fn new(policy: GrowthPolicy) -> Self {
        let streams_per_tunnel = policy.streams_per_tunnel.max(1);
        let busy_streams = policy.busy_streams.min(streams_per_tunnel);
        let policy = GrowthPolicy { streams_per_tunnel, busy_streams, ..policy };
        let (tunnels, waiting) = (Vec::new(), VecDeque::new());
        Self { tunnels, dials: 0, waiting, policy, no_growth_until: None, retired: false }
    }

    /// A caller needs a stream; `waiter` is queued if it has to wait.
    pub(super) fn checkout(&mut self, now: Instant, waiter: impl FnOnce() -> W) -> Checkout<T, T::Permit> {
        if self.retired {
            return Checkout::Retired;
        }
        self.tunnels.retain(PooledTunnel::is_alive);
        let light = self.tunnels.iter().filter(|tunnel| self.policy.is_lightly_loaded(*tunnel));
        if let Some((tunnel, permit)) = first_with_room(light) {
            return Checkout::Use(tunnel, permit);
        }
        let mut ranked: Vec<&T> = self.tunnels.iter().collect();
        // By quarters of a core: the measured load fluctuates, and small differences must not decide.
        ranked.sort_by_key(|tunnel| (tunnel.cpu_permille() / 250, tunnel.active()));
        if let Some((tunnel, permit)) = first_with_room(ranked.into_iter()) {
            if !self.may_grow(now) {
                return Checkout::Use(tunnel, permit);
            }
            self.dials += 1;
            return Checkout::Grow(tunnel, permit);
        }
        // Each dial in progress will serve its dialler and as many waiters as its tunnel should have further streams.
        let may_add = self.tunnels.len() + self.dials < self.policy.tunnels;
        let each = if may_add { self.policy.busy_streams.max(1) } else { self.policy.streams_per_tunnel };
        if self.waiting.len() < self.dials * (each - 1) {
            self.waiting.push_back(waiter());
            return Checkout::Wait;
        }
        self.dials += 1;
        Checkout::Dial
    }

    /// One at a time: the effect of one more tunnel is measured before the next is added.
    fn may_grow(&self, now: Instant) -> bool {
        self.dials == 0
            && self.tunnels.len() < self.policy.tunnels
            && self.no_growth_until.is_none_or(|until| now >= until)
    }

    /// A tunnel that was to be added because of load could not be dialled: no other is added for a while.
    pub(super) fn growth_failed(&mut self, now: Instant) {
        self.no_growth_until = Some(now + GROWTH_PAUSE);
    }

    /// A dial succeeded. The dialler has its permit already.
    pub(super) fn dial_succeeded(&mut self, tunnel: T) {
        self.dials = self.dials.saturating_sub(1);
        self.tunnels.push(tunnel);
    }

    /// The next waiting caller, with a stream for it; called until there is none.
    pub(super) fn next_grant(&mut self) -> Option<(W, T, T::Permit)> {
        if self.waiting.is_empty() {
            return None;
        }
        let (tunnel, permit) = first_with_room(self.tunnels.iter().filter(|tunnel| tunnel.is_alive()))?;
        Some((self.waiting.pop_front()?, tunnel, permit))
    }

    /// A dial failed. Returns the waiting callers that no other dial will serve; they fail, too.
    pub(super) fn dial_failed(&mut self) -> Vec<W> {
        self.dials = self.dials.saturating_sub(1);
        let served = self.dials * (self.policy.streams_per_tunnel - 1);
        let failed = self.waiting.len().saturating_sub(served);
        self.waiting.drain(..failed).collect()
    }

    /// A dialler gave up before its dial had ended. Returns the waiting caller that dials in its place.
    pub(super) fn dial_abandoned(&mut self) -> Option<W> {
        self.dials = self.dials.saturating_sub(1);
        self.next_dialler()
    }

    /// The longest waiting caller, if more callers wait than the dials in progress will serve, because a dialler gave up or
    /// a new tunnel has fewer streams than expected. It counts as dialling from now on.
    pub(super) fn next_dialler(&mut self) -> Option<W> {
        if self.waiting.len() <= self.dials * (self.policy.streams_per_tunnel - 1) {
            return None;
        }
        self.dials += 1;
        self.waiting.pop_front()
    }

    /// Removes tunnels that have ended or were idle for `idle`.
    pub(super) fn expire(&mut self, now: Instant, idle: Duration) -> Vec<T> {
        let stale = |tunnel: &T| tunnel.idle_since().is_some_and(|since| now.duration_since(since) >= idle);
        let (expired, kept) = std::mem::take(&mut self.tunnels)
            .into_iter()
            .partition(|tunnel| !tunnel.is_alive() || stale(tunnel));
        self.tunnels = kept;
        expired
    }

    /// Removes the tunnels that `matches` selects.
    pub(super) fn remove(&mut self, matches: impl Fn(&T) -> bool) {
        self.tunnels.retain(|tunnel| !matches(tunnel));
    }

    /// Marks the entry as removed from the pool if it is empty; returns whether it is.
    pub(super) fn retire(&mut self) -> bool {
        self.retired |= self.tunnels.is_empty() && self.dials == 0 && self.waiting.is_empty();
        self.retired
    }

    pub(super) fn tunnels(&self) -> &[T] {
        &self.tunnels
    }
}

impl GrowthPolicy {
    fn is_lightly_loaded(&self, tunnel: &impl PooledTunnel) -> bool {
        tunnel.active() < self.busy_streams && tunnel.cpu_permille() < self.busy_cpu_permille
    }
}

fn first_with_room<'a, T: PooledTunnel + 'a>(
    mut tunnels: impl Iterator<Item = &'a T>,
) -> Option<(T, T::Permit)> {
    tunnels.find_map(|tunnel| Some((tunnel.clone(), tunnel.reserve()?)))
}

#[cfg(test)]
mod tests;
