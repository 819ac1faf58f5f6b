//! When to request which certificate. Sans-I/O: events and the time go in, jobs and the next wake-up come out. It has no
//! clock, no socket and no task, and never sees a certificate.
//!
//! ```text
//!           request()               next()               signed()
//!   (none) ─────────► Due(now) ──────────────► Signing ───────────► Due(half-life ± jitter)
//!                        ▲                       │ failed()                 │
//!                        └───────────────────────┴──► Due(backoff, at most the current expiry)
//! ```
//! Among due identities the higher [`Priority`] goes first, then the one overdue for longer.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use isthmus_model::SpiffeId;
use isthmus_rt::backoff::Backoff;

/// How urgent a certificate is; later variants are more urgent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Renewal of a valid certificate.
    Refresh,
    /// A workload was scheduled to this node and will need it soon.
    Prefetch,
    /// A connection is waiting for it.
    RealTime,
}

/// Limits of the schedule.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Requests in flight at most.
    pub in_flight: usize,
    /// Backoff after the first failure of an identity; doubles with each further one, jittered by ±20 %.
    pub first_retry: Duration,
    /// Longest backoff.
    pub last_retry: Duration,
    /// Renewal is due at half of the lifetime, ± this fraction of the lifetime, so that the certificates of a restarted
    /// node are not all renewed at once.
    pub jitter: f64,
}

/// Validity of a signed certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Start.
    pub not_before: SystemTime,
    /// End.
    pub not_after: SystemTime,
}

/// One request to make. Report its result with [`Schedule::signed`] or [`Schedule::failed`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The identity to request a certificate for.
    pub identity: SpiffeId,
    /// Distinguishes this request from an earlier one for the same identity.
    ticket: u64,
}

/// The schedule of signing requests.
#[derive(Debug)]
pub struct Schedule {
    limits: Limits,
    slots: HashMap<SpiffeId, Slot>,
    /// Tickets of requests in flight, including those whose identity was forgotten meanwhile.
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
    /// A request is due at this time.
    Due(SystemTime),
    /// In flight under this ticket.
    Signing(u64),
}

/// Minimum time before a renewal, for certificates that arrive past their half-life (slow clock, CA that caps lifetimes).
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

    /// Requests a certificate for `identity`. One that waits for its first request, or whose certificate has expired, is
    /// raised to `priority`; one that failed keeps its backoff.
    pub fn request(&mut self, identity: &SpiffeId, priority: Priority, now: SystemTime) {
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
        // The certificate expired before its renewal was due (the clock jumped): request it now.
        if let (Phase::Due(due), Some(_)) = (slot.phase, slot.valid_until.take()) {
            slot.phase = Phase::Due(due.min(now));
        }
    }

    /// Forgets an identity. Its request in flight counts against the limit until its result is reported.
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

    /// When to call [`Schedule::next`] again; `None` while only the result of a request can change its answer.
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

    /// A request succeeded. Returns `false` when its identity was forgotten meanwhile and the certificate must be dropped.
    pub fn signed(&mut self, job: &Job, validity: Validity, now: SystemTime) -> bool {
        let spread = (self.random.f64() * 2.0 - 1.0) * self.limits.jitter;
        let Some(slot) = self.take_in_flight(job) else { return false };
        let lifetime = validity.not_after.duration_since(validity.not_before).unwrap_or_default();
        let renewal = validity.not_before + lifetime.mul_f64((0.5 + spread).clamp(0.0, 1.0));
        slot.phase = Phase::Due(renewal.max(now + SOONEST_RENEWAL));
        slot.priority = Priority::Refresh;
        slot.valid_until = Some(validity.not_after);
        slot.backoff.reset();
        true
    }

    /// A request failed. It is retried after a backoff, or when the current certificate expires, whichever comes first.
    /// Returns `false` when its identity was forgotten meanwhile.
    pub fn failed(&mut self, job: &Job, now: SystemTime) -> bool {
        let Some(slot) = self.take_in_flight(job) else { return false };
        let retry = now + slot.backoff.next_delay();
        let valid_until = slot.valid_until.filter(|until| *until > now);
        slot.phase = Phase::Due(valid_until.map_or(retry, |until| retry.min(until)));
        slot.priority = if valid_until.is_some() { Priority::Refresh } else { Priority::Prefetch };
        slot.valid_until = valid_until;
        true
    }

    fn take_in_flight(&mut self, job: &Job) -> Option<&mut Slot> {
        self.running.remove(&job.ticket);
        self.slots.get_mut(&job.identity).filter(|slot| slot.phase == Phase::Signing(job.ticket))
    }
}

#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;
