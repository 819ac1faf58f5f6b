//! What is known of one destination's tunnels, without I/O or a clock: who uses which tunnel, who dials, who waits.
//!
//! ```text
//!             checkout
//!                │ a tunnel has an easy time ───────► Use
//!                │ all that have room are busy ─────► Grow ──dialed──► one more
//!                │ ... and there are enough ────────► Use     failed──► not again for a while
//!                │ a dial under way will have room ─► Wait ──dialed──► granted
//!                └ otherwise ───────────────────────► Dial    failed──► told so
//!                                                             abandoned ► the longest waiting dials
//! ```
//!
//! The oldest tunnel that has an easy time is used, not the one with the fewest streams: when the load is over, the
//! tunnels that it opened are left without streams, and expire.

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
    /// Thousandths of a core that it takes; it can have no more than one.
    fn busy(&self) -> u64;
    /// Takes a stream's place when there is room.
    fn reserve(&self) -> Option<Self::Permit>;
}

/// How many tunnels there are for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spread {
    /// Streams a new tunnel will carry.
    pub(super) per_tunnel: usize,
    /// Tunnels up to which load alone is a reason for one more.
    pub(super) tunnels: usize,
    /// A tunnel with fewer streams than this has an easy time,
    pub(super) calm_streams: usize,
    /// unless it takes as many thousandths of a core.
    pub(super) calm_share: u64,
}

/// How long a destination is left alone after one more tunnel could not be had.
const PAUSE: Duration = Duration::from_secs(30);

/// One destination's tunnels. `W` is how a waiting caller is told.
#[derive(Debug)]
pub(super) struct Entry<M, W> {
    members: Vec<M>,
    dials: usize,
    waiting: VecDeque<W>,
    spread: Spread,
    /// Until when load is no reason for another tunnel.
    content_until: Option<Instant>,
    retired: bool,
}

/// What a caller shall do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Checkout<M, P> {
    /// Open its stream here.
    Use(M, P),
    /// Open its stream here; and somebody shall dial, on nobody's time, and say how it went.
    Grow(M, P),
    /// Dial, and say how it went.
    Dial,
    /// It was queued, and will be told.
    Wait,
    /// Ask again: this entry has left the pool.
    Retired,
}

impl<M: Member, W> Entry<M, W> {
    pub(super) fn new(spread: Spread) -> Self {
        let per_tunnel = spread.per_tunnel.max(1);
        let spread = Spread { per_tunnel, calm_streams: spread.calm_streams.min(per_tunnel), ..spread };
        let (members, waiting) = (Vec::new(), VecDeque::new());
        Self { members, dials: 0, waiting, spread, content_until: None, retired: false }
    }

    /// A caller wants a stream; `waiter` is kept when it has to wait.
    pub(super) fn checkout(&mut self, now: Instant, waiter: impl FnOnce() -> W) -> Checkout<M, M::Permit> {
        if self.retired {
            return Checkout::Retired;
        }
        self.members.retain(Member::is_alive);
        let calm = self.members.iter().filter(|member| self.spread.is_calm(*member));
        if let Some((member, permit)) = first_with_room(calm) {
            return Checkout::Use(member, permit);
        }
        let mut ranked: Vec<&M> = self.members.iter().collect();
        // Whole quarters of a core first: a share is never still.
        ranked.sort_by_key(|member| (member.busy() / 250, member.active()));
        if let Some((member, permit)) = first_with_room(ranked.into_iter()) {
            if !self.may_grow(now) {
                return Checkout::Use(member, permit);
            }
            self.dials += 1;
            return Checkout::Grow(member, permit);
        }
        // Each dial under way carries its dialler and as many more as its tunnel shall have streams.
        let more = self.members.len() + self.dials < self.spread.tunnels;
        let each = if more { self.spread.calm_streams.max(1) } else { self.spread.per_tunnel };
        if self.waiting.len() < self.dials * (each - 1) {
            self.waiting.push_back(waiter());
            return Checkout::Wait;
        }
        self.dials += 1;
        Checkout::Dial
    }

    /// One at a time: what the last one carries is seen before there is a next one.
    fn may_grow(&self, now: Instant) -> bool {
        self.dials == 0
            && self.members.len() < self.spread.tunnels
            && self.content_until.is_none_or(|until| now >= until)
    }

    /// One more tunnel for load could not be had; what there is must do for a while.
    pub(super) fn cannot_grow(&mut self, now: Instant) {
        self.content_until = Some(now + PAUSE);
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
        let (member, permit) = first_with_room(self.members.iter().filter(|member| member.is_alive()))?;
        Some((self.waiting.pop_front()?, member, permit))
    }

    /// A dial failed: the callers that no other dial will carry, to be told.
    pub(super) fn failed(&mut self) -> Vec<W> {
        self.dials = self.dials.saturating_sub(1);
        let carried = self.dials * (self.spread.per_tunnel - 1);
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
        if self.waiting.len() <= self.dials * (self.spread.per_tunnel - 1) {
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

impl Spread {
    fn is_calm(&self, member: &impl Member) -> bool {
        member.active() < self.calm_streams && member.busy() < self.calm_share
    }
}

fn first_with_room<'a, M: Member + 'a>(members: impl Iterator<Item = &'a M>) -> Option<(M, M::Permit)> {
    members.into_iter().find_map(|member| Some((member.clone(), member.reserve()?)))
}

#[cfg(test)]
mod tests;
