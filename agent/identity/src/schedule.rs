//! When to ask for which certificate. Sans-IO: events and the time go in, jobs and the next wake-up come out; no clock,
//! no socket, no task, and no certificate either.
//!
//! ```text
//!            wanted                 next()                signed
//!   (none) ─────────► Due(now) ──────────────► Signing ───────────► Due(half-life ± jitter)
//!                        ▲                       │  failed                  │
//!                        └───────────────────────┴──► Due(backoff, at most the old one's expiry)
//! ```
//! Among those that are due the higher [`Priority`] goes first, then the longer overdue.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use isthmus_model::SpiffeId;
use isthmus_rt::backoff::Backoff;

/// How urgent a certificate is; later is more urgent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A valid one is being renewed.
    Refresh,
    /// A workload was placed on this node and will need it soon.
    Prefetch,
    /// A connection waits for it.
    RealTime,
}

/// Limits of the schedule.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Requests that may be under way at once.
    pub in_flight: usize,
    /// Wait after the first failure of an identity; doubles, spread by ±20 %.
    pub first_retry: Duration,
    /// Longest wait between failures.
    pub last_retry: Duration,
    /// Renewal happens at half of the lifetime, spread by this fraction of the lifetime to either side, so that the
    /// certificates of a restarted node do not renew in step.
    pub jitter: f64,
}

/// Validity of a signed certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From.
    pub not_before: SystemTime,
    /// Until.
    pub not_after: SystemTime,
}

/// One request to be made. Report its end with [`Schedule::signed`] or [`Schedule::failed`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// For whom.
    pub identity: SpiffeId,
    /// Tells this request from an earlier one for the same identity.
    ticket: u64,
}

/// The queue.
#[derive(Debug)]
pub struct Schedule {
    limits: Limits,
    slots: HashMap<SpiffeId, Slot>,
    /// Tickets of requests under way, including those whose identity was forgotten meanwhile.
    running: HashSet<u64>,
    tickets: u64,
    random: fastrand::Rng,
}

#[derive(Debug)]
struct Slot {
    phase: Phase,
    priority: Priority,
    valid_until: Option<SystemTime>,
    backoff: Backoff,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// To be requested at this time.
    Due(SystemTime),
    /// Requested under this ticket.
    Signing(u64),
}

/// A certificate that arrives past its half-life (a slow clock, a CA that caps lifetimes) is renewed no sooner than this.
const SOONEST_RENEWAL: Duration = Duration::from_secs(1);

impl Default for Limits {
    fn default() -> Self {
        Self {
            in_flight: 8,
            first_retry: Duration::from_secs(1),
            last_retry: Duration::from_secs(150),
            jitter: 0.05,
        }
    }
}

// === impl Schedule ===

impl Schedule {
    /// An empty schedule.
    #[must_use]
    pub fn new(limits: Limits, random: fastrand::Rng) -> Self {
        Self { limits, slots: HashMap::new(), running: HashSet::new(), tickets: 0, random }
    }

    /// A certificate of `identity` is wanted. One that waits for its first request, or whose certificate has expired,
    /// moves up to `priority`; one that failed keeps its wait.
    pub fn wanted(&mut self, identity: &SpiffeId, priority: Priority, now: SystemTime) {
        let slot = self.slots.entry(identity.clone()).or_insert_with(|| Slot {
            phase: Phase::Due(now),
            priority,
            valid_until: None,
            backoff: Backoff::new(self.limits.first_retry, self.limits.last_retry),
        });
        if slot.valid_until.is_some_and(|until| until > now) {
            return;
        }
        slot.priority = slot.priority.max(priority);
        // The certificate ran out before its renewal came up (a clock that jumped): no reason to wait any longer.
        if let (Phase::Due(due), Some(_)) = (slot.phase, slot.valid_until.take()) {
            slot.phase = Phase::Due(due.min(now));
        }
    }

    /// Forgets an identity. A request under way counts against the limit until its end is reported.
    pub fn forget(&mut self, identity: &SpiffeId) {
        self.slots.remove(identity);
    }

    /// The next request to make now, if any.
    pub fn next(&mut self, now: SystemTime) -> Option<Job> {
        if self.running.len() >= self.limits.in_flight {
            return None;
        }
        let (identity, slot) = self
            .slots
            .iter_mut()
            .filter_map(|(identity, slot)| match slot.phase {
                Phase::Due(due) if due <= now => Some((due, identity, slot)),
                _ => None,
            })
            .min_by(|(a_due, a_id, a), (b_due, b_id, b)| {
                b.priority.cmp(&a.priority).then(a_due.cmp(b_due)).then(a_id.cmp(b_id))
            })
            .map(|(_, identity, slot)| (identity, slot))?;
        self.tickets += 1;
        self.running.insert(self.tickets);
        slot.phase = Phase::Signing(self.tickets);
        Some(Job { identity: identity.clone(), ticket: self.tickets })
    }

    /// When [`Schedule::next`] should be asked again; `None` while only the end of a request can change its answer.
    #[must_use]
    pub fn wake_at(&self) -> Option<SystemTime> {
        if self.running.len() >= self.limits.in_flight {
            return None;
        }
        let due = |slot: &Slot| match slot.phase {
            Phase::Due(due) => Some(due),
            Phase::Signing(_) => None,
        };
        self.slots.values().filter_map(due).min()
    }

    /// A request succeeded. `false` when its identity was forgotten meanwhile and the certificate is to be dropped.
    pub fn signed(&mut self, job: &Job, validity: Validity, now: SystemTime) -> bool {
        let spread = (self.random.f64() * 2.0 - 1.0) * self.limits.jitter;
        let Some(slot) = self.finished(job) else { return false };
        let lifetime = validity.not_after.duration_since(validity.not_before).unwrap_or_default();
        let renewal = validity.not_before + lifetime.mul_f64((0.5 + spread).clamp(0.0, 1.0));
        slot.phase = Phase::Due(renewal.max(now + SOONEST_RENEWAL));
        slot.priority = Priority::Refresh;
        slot.valid_until = Some(validity.not_after);
        slot.backoff.reset();
        true
    }

    /// A request failed. It is made again after a wait, or when the certificate that is still valid expires, whichever
    /// comes first. `false` when its identity was forgotten meanwhile.
    pub fn failed(&mut self, job: &Job, now: SystemTime) -> bool {
        let Some(slot) = self.finished(job) else { return false };
        let retry = now + slot.backoff.next_delay();
        let valid_until = slot.valid_until.filter(|until| *until > now);
        slot.phase = Phase::Due(valid_until.map_or(retry, |until| retry.min(until)));
        slot.priority = if valid_until.is_some() { Priority::Refresh } else { Priority::Prefetch };
        slot.valid_until = valid_until;
        true
    }

    fn finished(&mut self, job: &Job) -> Option<&mut Slot> {
        self.running.remove(&job.ticket);
        self.slots.get_mut(&job.identity).filter(|slot| slot.phase == Phase::Signing(job.ticket))
    }
}

#[cfg(test)]
mod tests;
