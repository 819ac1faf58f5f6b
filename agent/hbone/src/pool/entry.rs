//! One key's tunnels, without I/O and without a clock: which tunnel a caller uses, who dials, and who waits.
//!
//! ```text
//!             checkout
//!                │ a tunnel has room ────────────────► Use
//!                │ a dial in progress will have room ► Wait ──dial_succeeded──► granted
//!                └ otherwise ────────────────────────► Dial    dial_failed────► failed, too
//!                                                              dial_abandoned ► the longest waiting caller dials
//! ```
//!
//! The oldest lightly loaded tunnel is used, not the one with the fewest streams: when tunnels were added since the others
//! were full, they get no more streams afterwards, and expire.

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
    /// Reserves a stream if there is room.
    fn reserve(&self) -> Option<Self::Permit>;
}

/// How many streams tunnels carry.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoadPolicy {
    /// Streams that a new tunnel will carry.
    pub(super) streams_per_tunnel: usize,
    /// A tunnel with this many streams is not lightly loaded any more.
    pub(super) busy_streams: usize,
}

/// One key's tunnels. `W` is the channel to a waiting caller.
#[derive(Debug)]
pub(super) struct Entry<T, W> {
    tunnels: Vec<T>,
    /// Dials in progress.
    dials: usize,
    waiting: VecDeque<W>,
    policy: LoadPolicy,
    retired: bool,
}

/// What a caller does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Checkout<T, P> {
    /// Open its stream here.
    Use(T, P),
    /// Dial, and report the result.
    Dial,
    /// Wait: it was queued.
    Wait,
    /// Look up the key again: this entry was removed from the pool.
    Retired,
}

impl<T: PooledTunnel, W> Entry<T, W> {
    pub(super) fn new(policy: LoadPolicy) -> Self {
        let streams_per_tunnel = policy.streams_per_tunnel.max(1);
        let policy = LoadPolicy { streams_per_tunnel, ..policy };
        Self { tunnels: Vec::new(), dials: 0, waiting: VecDeque::new(), policy, retired: false }
    }

    /// A caller needs a stream; `waiter` is queued if it has to wait.
    pub(super) fn checkout(&mut self, waiter: impl FnOnce() -> W) -> Checkout<T, T::Permit> {
        if self.retired {
            return Checkout::Retired;
        }
        self.tunnels.retain(PooledTunnel::is_alive);
        let light = self.tunnels.iter().filter(|tunnel| tunnel.active() < self.policy.busy_streams);
        if let Some((tunnel, permit)) = first_with_room(light) {
            return Checkout::Use(tunnel, permit);
        }
        let mut ranked: Vec<&T> = self.tunnels.iter().collect();
        ranked.sort_by_key(|tunnel| tunnel.active());
        if let Some((tunnel, permit)) = first_with_room(ranked.into_iter()) {
            return Checkout::Use(tunnel, permit);
        }
        // Each dial in progress will serve its dialler and as many waiters as its tunnel should have further streams.
        if self.waiting.len() < self.dials * (self.policy.streams_per_tunnel - 1) {
            self.waiting.push_back(waiter());
            return Checkout::Wait;
        }
        self.dials += 1;
        Checkout::Dial
    }

    /// A dial succeeded. The dialler has its permit already.
    pub(super) fn dial_succeeded(&mut self, tunnel: T) {
        self.dials = self.dials.saturating_sub(1);
        self.tunnels.push(tunnel);
    }

    /// A tunnel that was not dialled here. False when this entry was removed from the pool.
    pub(super) fn add(&mut self, tunnel: T) -> bool {
        if !self.retired {
            self.tunnels.push(tunnel);
        }
        !self.retired
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

fn first_with_room<'a, T: PooledTunnel + 'a>(
    mut tunnels: impl Iterator<Item = &'a T>,
) -> Option<(T, T::Permit)> {
    tunnels.find_map(|tunnel| Some((tunnel.clone(), tunnel.reserve()?)))
}

#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;
