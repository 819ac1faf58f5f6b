//! Whether, and with whom, a connection that was not made is tried again. Pure: time is an argument, and what failed is
//! told; nobody is dialled here.
//!
//! ```text
//!   failed ──no cause──────────────────────────────► give up: the far end decided, or the fault is ours
//!      │ cause
//!      ├─ whoever is to blame is not chosen again, and is out for others too (see [`super::ejection`])
//!      ├─ tries, time or budget used up ───────────► give up
//!      └─ again ──nobody else, or only with less protection─► give up
//! ```

use std::fmt::Write as _;
use std::time::Duration;

use isthmus_model::WorkloadUid;
use isthmus_state::Role;
use isthmus_state::route::{Pick, Reason, Route};
use tokio::time::Instant;

use super::budget::Budget;
use super::cause::Cause;
use super::ejection::{EjectionConfig, Ejections, Group, Verdict};
use crate::config::Retry;

/// What a pod remembers from one connection to the next.
#[derive(Debug)]
pub(crate) struct PodRetryState {
    pub(crate) ejections: Ejections,
    budget: Budget,
}

/// How well a connection is protected; a retry never has less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Protection {
    /// Plaintext.
    Plain,
    /// Tunnelled to the endpoint.
    Direct,
    /// Tunnelled to a waypoint.
    Waypoint,
}

/// How far a try came that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hop {
    /// Not beyond the first peer: the endpoint, waypoint or gateway.
    Outer,
    /// The gateway had accepted; what failed was behind it.
    Inner,
}

/// Why it is not tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GiveUpReason {
    /// The failure is one that another endpoint would not change, or must not hide.
    NotRetryable,
    /// As many were tried as may be.
    RetryState,
    /// It took too long already.
    Time,
    /// The pod retries too much.
    Budget,
    /// There is no other.
    NobodyElse,
    /// The others are reached in plaintext, or past the waypoint.
    Weaker,
}

/// A try that failed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FailedAttempt<'a> {
    pub(crate) cause: Option<Cause>,
    pub(crate) depth: Hop,
    /// Where it went.
    pub(crate) to: std::net::SocketAddr,
    /// Who was chosen for it.
    pub(crate) picks: &'a [Pick],
}

/// Somebody was put out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ejected(pub(crate) Role);

/// The tries of one connection.
#[derive(Debug)]
pub(crate) struct RetryState {
    limits: Retry,
    started: Instant,
    made: u32,
    manner: Option<Protection>,
    /// Not chosen again.
    pub(crate) tried: Vec<WorkloadUid>,
    /// Not chosen again unless there is nobody else: who stands for many behind a gateway.
    pub(crate) tried_stand_ins: Vec<WorkloadUid>,
    story: String,
}

// === impl PodRetryState ===

impl PodRetryState {
    pub(crate) fn new(retry: &Retry, now: Instant) -> Self {
        let terms = EjectionConfig { first: retry.ejection, longest: retry.longest_ejection };
        Self { ejections: Ejections::new(terms, now), budget: Budget::new(retry.reserve, retry.percent, now) }
    }
}

// === impl Protection ===

impl Protection {
    /// Of a route; `None` when there is nothing to connect to.
    pub(crate) fn of(route: &Route, reason: Reason) -> Option<Self> {
        match (route, reason) {
            (Route::Deny(_), _) => None,
            (Route::Passthrough { .. } | Route::Tcp(_), _) => Some(Self::Plain),
            (_, Reason::ServiceWaypoint | Reason::WorkloadWaypoint) => Some(Self::Waypoint),
            (Route::Hbone(_) | Route::DoubleHbone(_), _) => Some(Self::Direct),
        }
    }
}

// === impl Why ===

impl GiveUpReason {
    /// As logs and metrics name it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::NotRetryable => "not retryable",
            Self::RetryState => "tries used up",
            Self::Time => "out of time",
            Self::Budget => "budget used up",
            Self::NobodyElse => "no other endpoint",
            Self::Weaker => "others are less protected",
        }
    }
}

// === impl RetryState ===

impl RetryState {
    /// A connection is begun.
    pub(crate) fn begin(limits: Retry, experience: &mut PodRetryState, now: Instant) -> Self {
        experience.budget.connection();
        Self {
            limits,
            started: now,
            made: 0,
            manner: None,
            tried: Vec::new(),
            tried_stand_ins: Vec::new(),
            story: String::new(),
        }
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Whether endpoints that are reached in plaintext are out of the question.
    pub(crate) fn must_be_tunnelled(&self) -> bool {
        self.manner.is_some_and(|manner| manner > Protection::Plain)
    }

    /// A try is about to be made; an error when it would be less protected than the first one was.
    pub(crate) fn next(&mut self, manner: Protection) -> Result<(), GiveUpReason> {
        if self.manner.is_some_and(|first| manner < first) {
            return Err(GiveUpReason::Weaker);
        }
        self.manner.get_or_insert(manner);
        self.made += 1;
        Ok(())
    }

    /// A try is about to be made, and all are equally protected.
    pub(crate) fn again(&mut self) {
        self.made += 1;
    }

    /// A try failed: whether to make another one, and who was put out.
    pub(crate) fn missed(
        &mut self,
        missed: &FailedAttempt<'_>,
        experience: &mut PodRetryState,
        now: Instant,
    ) -> (Result<(), GiveUpReason>, Option<Ejected>) {
        let Some(cause) = missed.cause else { return (Err(GiveUpReason::NotRetryable), None) };
        let separator = if self.story.is_empty() { "" } else { "; " };
        // Writing to a string cannot fail.
        let _ = write!(self.story, "{separator}{} {}", missed.to, cause.as_str());
        let ejected = self.blame(cause, missed, experience, now);
        let again = if missed.picks.is_empty() {
            Err(GiveUpReason::NobodyElse)
        } else if self.made >= self.limits.tries {
            Err(GiveUpReason::RetryState)
        } else if now.duration_since(self.started) >= self.limits.window {
            Err(GiveUpReason::Time)
        } else if !experience.budget.retry(now) {
            Err(GiveUpReason::Budget)
        } else {
            Ok(())
        };
        (again, ejected)
    }

    /// Who is to blame: the first peer for what it did itself; for a 503, whatever the first peer stands for.
    fn blame(
        &mut self,
        cause: Cause,
        missed: &FailedAttempt<'_>,
        experience: &mut PodRetryState,
        now: Instant,
    ) -> Option<Ejected> {
        match missed.picks {
            [] => None,
            [one] => {
                self.tried.push(one.workload.uid.clone());
                // A waypoint's 503 is about what is behind it.
                let its_own = one.role != Role::Waypoint || cause != Cause::Unavailable;
                if its_own { self.eject(one, experience, now) } else { None }
            }
            [stand_in, gateway, ..] => {
                self.tried_stand_ins.push(stand_in.workload.uid.clone());
                match (missed.depth, cause) {
                    // One of those behind it refused; the gateway chooses another one each time.
                    (Hop::Inner, _) => None,
                    (Hop::Outer, Cause::Unavailable) => self.eject(stand_in, experience, now),
                    (Hop::Outer, _) => {
                        self.tried.push(gateway.workload.uid.clone());
                        // The only gateway there is cannot be out, but what is behind it can be.
                        let blamed = if gateway.of > 1 { gateway } else { stand_in };
                        self.eject(blamed, experience, now)
                    }
                }
            }
        }
    }

    fn eject(&mut self, pick: &Pick, experience: &mut PodRetryState, now: Instant) -> Option<Ejected> {
        let group = Group { service: pick.service.clone()?, port: pick.port };
        let uid = &pick.workload.uid;
        let verdict = experience.ejections.refused(&group, uid, pick.of, now);
        // Writing to a string cannot fail.
        let _ = match verdict {
            Verdict::Out(time) => {
                write!(self.story, ", {} {uid} ejected for {}", pick.role.as_str(), Brief(time))
            }
            Verdict::Already => write!(self.story, ", {} {uid} was ejected already", pick.role.as_str()),
            Verdict::Limit => {
                write!(self.story, ", {} {uid} not ejected: half of {} at most", pick.role.as_str(), pick.of)
            }
        };
        matches!(verdict, Verdict::Out(_)).then_some(Ejected(pick.role))
    }

    /// The far end said yes.
    pub(crate) fn reached(&self, picks: &[Pick], experience: &mut PodRetryState, now: Instant) {
        for pick in picks {
            if let Some(service) = &pick.service {
                let group = Group { service: service.clone(), port: pick.port };
                experience.ejections.reached(&group, &pick.workload.uid, now);
            }
        }
    }

    /// How many tries were made, and what came of those that failed and could be tried again.
    pub(crate) fn story(&self) -> (u32, &str) {
        (self.made, &self.story)
    }
}

struct Brief(Duration);

impl std::fmt::Display for Brief {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.subsec_millis() == 0 {
            write!(f, "{}s", self.0.as_secs())
        } else {
            write!(f, "{}ms", self.0.as_millis())
        }
    }
}

#[cfg(test)]
mod tests;
