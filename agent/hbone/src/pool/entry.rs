//! What is known of one destination's tunnels, without I/O or a clock: who uses which tunnel, who dials, who waits.
//!
//! ```text
//!             checkout
//!                │ a tunnel has room ───────────────► Use
//!                │ a dial under way will have room ─► Wait ──dialed──► granted
//!                └ otherwise ───────────────────────► Dial    failed──► told so
//!                                                             abandoned ► the longest waiting dials
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// A tunnel as the entry sees it.
pub(super) trait Member: Clone {
    /// The right to one stream.
    type Permit;
    /// Whether streams can be opened, now or later.
    fn is_alive(&self) -> bool;
    /// Streams in use.
    fn active(&self) -> usize;
    /// Since when none is in use.
    fn idle_since(&self) -> Option<Instant>;
    /// Takes a stream's place when there is room.
    fn reserve(&self) -> Option<Self::Permit>;
}

/// One destination's tunnels. `W` is how a waiting caller is told.
#[derive(Debug)]
pub(super) struct Entry<M, W> {
    members: Vec<M>,
    dials: usize,
    waiting: VecDeque<W>,
    /// Streams a new tunnel will carry.
    per_tunnel: usize,
    retired: bool,
}

/// What a caller shall do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Checkout<M, P> {
    /// Open its stream here.
    Use(M, P),
    /// Dial, and say how it went.
    Dial,
    /// It was queued, and will be told.
    Wait,
    /// Ask again: this entry has left the pool.
    Retired,
}

impl<M: Member, W> Entry<M, W> {
    pub(super) fn new(per_tunnel: usize) -> Self {
        let per_tunnel = per_tunnel.max(1);
        Self { members: Vec::new(), dials: 0, waiting: VecDeque::new(), per_tunnel, retired: false }
    }

    /// A caller wants a stream; `waiter` is kept when it has to wait.
    pub(super) fn checkout(&mut self, waiter: impl FnOnce() -> W) -> Checkout<M, M::Permit> {
        if self.retired {
            return Checkout::Retired;
        }
        self.members.retain(Member::is_alive);
        // The least loaded first: one connection is one core's work.
        self.members.sort_by_key(Member::active);
        for member in &self.members {
            if let Some(permit) = member.reserve() {
                return Checkout::Use(member.clone(), permit);
            }
        }
        // Each dial under way carries its dialler and as many more as a tunnel has streams.
        if self.waiting.len() < self.dials * (self.per_tunnel - 1) {
            self.waiting.push_back(waiter());
            return Checkout::Wait;
        }
        self.dials += 1;
        Checkout::Dial
    }

    /// A dial succeeded. The dialler has its permit already.
    pub(super) fn dialed(&mut self, member: M) {
        self.dials = self.dials.saturating_sub(1);
        self.members.push(member);
    }

    /// The next waiting caller that can be granted a stream now; called until there is none.
    pub(super) fn grant(&mut self) -> Option<(W, M, M::Permit)> {
        if self.waiting.is_empty() {
            return None;
        }
        let (member, permit) = self
            .members
            .iter()
            .filter(|member| member.is_alive())
            .find_map(|member| Some((member.clone(), member.reserve()?)))?;
        Some((self.waiting.pop_front()?, member, permit))
    }

    /// A dial failed: the callers that no other dial will carry, to be told.
    pub(super) fn failed(&mut self) -> Vec<W> {
        self.dials = self.dials.saturating_sub(1);
        let carried = self.dials * (self.per_tunnel - 1);
        let lost = self.waiting.len().saturating_sub(carried);
        self.waiting.drain(..lost).collect()
    }

    /// A dialler gave up before its dial had ended: the caller that dials in its place.
    pub(super) fn abandoned(&mut self) -> Option<W> {
        self.dials = self.dials.saturating_sub(1);
        self.next_dialler()
    }

    /// The longest waiting caller, when those who wait are more than the dials under way will carry: because a dialler
    /// gave up, or a new tunnel carries less than expected. It counts as dialling from now on.
    pub(super) fn next_dialler(&mut self) -> Option<W> {
        if self.waiting.len() <= self.dials * (self.per_tunnel - 1) {
            return None;
        }
        self.dials += 1;
        self.waiting.pop_front()
    }

    /// Takes out what is dead and what nobody has used for `idle`.
    pub(super) fn expire(&mut self, now: Instant, idle: Duration) -> Vec<M> {
        let stale = |member: &M| member.idle_since().is_some_and(|since| now.duration_since(since) >= idle);
        let (gone, kept) = std::mem::take(&mut self.members)
            .into_iter()
            .partition(|member| !member.is_alive() || stale(member));
        self.members = kept;
        gone
    }

    /// Takes out one tunnel.
    pub(super) fn remove(&mut self, which: impl Fn(&M) -> bool) {
        self.members.retain(|member| !which(member));
    }

    /// Leaves the pool when there is nothing left of it.
    pub(super) fn retire(&mut self) -> bool {
        self.retired |= self.members.is_empty() && self.dials == 0 && self.waiting.is_empty();
        self.retired
    }

    pub(super) fn members(&self) -> &[M] {
        &self.members
    }
}

#[cfg(test)]
mod tests;
