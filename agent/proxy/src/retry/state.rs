//! The retry state machine: whether a failed attempt is retried, and which endpoints the retry avoids. Pure: time is an
//! argument and nothing is dialled here.
//!
//! ```text
//!   attempt failed ──no cause────────────────────────────► give up: the peer decided, or the fault is ours
//!      │ cause
//!      ├─ the endpoint at fault is not chosen again, and is ejected for other connections (see [`super::ejection`])
//!      ├─ attempts, time or budget exhausted ────────────► give up
//!      └─ retry ──no other endpoint, or less protection──► give up
//! ```

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use isthmus_model::WorkloadUid;
use isthmus_state::route::{Pick, Picks, Reason, Role, Route};
use isthmus_state::{Avoid, Ejected};
use tokio::time::Instant;

use super::budget::Budget;
use super::cause::Cause;
use super::ejection::{EjectionConfig, EjectionOutcome, Ejections};
use crate::config::Retry;

/// What a pod remembers from one connection to the next.
#[derive(Debug)]
pub(crate) struct PodRetryState {
    pub(super) ejections: Ejections,
    pub(super) budget: Budget,
}

/// How well a connection is protected; a retry never has less than the first attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Protection {
    /// Plaintext.
    Plain,
    /// Tunnelled to the endpoint.
    Direct,
    /// Tunnelled to a waypoint.
    Waypoint,
}

/// Where an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hop {
    /// At the first peer: the endpoint, waypoint or gateway.
    Outer,
    /// Behind the gateway, which had accepted.
    Inner,
}

/// Why a connection is not retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GiveUpReason {
    /// Another endpoint would fail in the same way, or must not hide the failure.
    NotRetryable,
    /// The limit of attempts is reached.
    AttemptsExhausted,
    /// The time for attempts is over.
    OutOfTime,
    /// The retry budget of the pod is exhausted.
    BudgetExhausted,
    /// There is no other endpoint.
    NoOtherEndpoint,
    /// The other endpoints would be reached in plaintext, or past the waypoint.
    WeakerProtection,
}

/// An attempt that failed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FailedAttempt<'a> {
    pub(crate) cause: Option<Cause>,
    pub(crate) hop: Hop,
    /// Where TCP connected to.
    pub(crate) to: SocketAddr,
    /// What was chosen for it.
    pub(crate) picks: Picks<'a>,
}

/// What follows from a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FailureOutcome {
    /// Whether to retry.
    pub(crate) retry: Result<(), GiveUpReason>,
    /// The role of the workload that was ejected, if one was.
    pub(crate) ejected: Option<Role>,
}

/// The attempts of one connection.
#[derive(Debug)]
pub(crate) struct RetryState {
    config: Retry,
    started: Instant,
    attempts: u32,
    /// Protection of the first attempt.
    required: Option<Protection>,
    tried: Vec<WorkloadUid>,
    /// Workloads that stand for the endpoints of another network. Tried again when nothing else is left: the gateway
    /// behind them chooses anew each time.
    tried_remote: Vec<WorkloadUid>,
    /// Addresses of workloads that are known by a hostname only.
    tried_addresses: Vec<(WorkloadUid, IpAddr)>,
    /// The failed attempts in words, as the access log has them in `tried`.
    summary: String,
}

// === impl PodRetryState ===

impl PodRetryState {
    pub(crate) fn new(retry: &Retry, now: Instant) -> Self {
        let config = EjectionConfig { first: retry.ejection, longest: retry.longest_ejection };
        Self {
            ejections: Ejections::new(config, now),
            budget: Budget::new(retry.reserve, retry.percent, now),
        }
    }
}

// === impl Protection ===

impl Protection {
    /// Of a route that was taken for this reason.
    pub(crate) fn of(route: &Route, reason: Reason) -> Self {
        match (route, reason) {
            (Route::Passthrough { .. } | Route::Tcp(_), _) => Self::Plain,
            (_, Reason::ServiceWaypoint | Reason::WorkloadWaypoint) => Self::Waypoint,
            (Route::Hbone(_) | Route::DoubleHbone(_), _) => Self::Direct,
        }
    }
}

// === impl GiveUpReason ===

impl GiveUpReason {
    /// The reason with this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let all = [
            Self::NotRetryable,
            Self::AttemptsExhausted,
            Self::OutOfTime,
            Self::BudgetExhausted,
            Self::NoOtherEndpoint,
            Self::WeakerProtection,
        ];
        all.into_iter().find(|reason| reason.as_str() == name)
    }

    /// The value in logs and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::NotRetryable => "not retryable",
            Self::AttemptsExhausted => "tries used up",
            Self::OutOfTime => "out of time",
            Self::BudgetExhausted => "budget used up",
            Self::NoOtherEndpoint => "no other endpoint",
            Self::WeakerProtection => "others are less protected",
        }
    }
}

// === impl RetryState ===

impl RetryState {
    /// A connection starts.
    pub(crate) fn start(config: Retry, pod: &mut PodRetryState, now: Instant) -> Self {
        pod.budget.deposit();
        Self {
            config,
            started: now,
            attempts: 0,
            required: None,
            tried: Vec::new(),
            tried_remote: Vec::new(),
            tried_addresses: Vec::new(),
            summary: String::new(),
        }
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// What the next choice must avoid, beside the ejections of the pod.
    pub(crate) fn avoid<'a>(&'a self, ejected: Option<Ejected<'a>>) -> Avoid<'a> {
        Avoid {
            tried: &self.tried,
            tried_remote: &self.tried_remote,
            tried_addresses: &self.tried_addresses,
            ejected,
            tunnelled_only: self.required.is_some_and(|required| required > Protection::Plain),
        }
    }

    /// Whether an attempt may be made with this protection.
    pub(crate) fn allows(&self, protection: Protection) -> bool {
        self.required.is_none_or(|required| protection >= required)
    }

    /// An attempt starts.
    pub(crate) fn start_attempt(&mut self, protection: Protection) {
        self.required.get_or_insert(protection);
        self.attempts += 1;
    }

    /// An attempt failed.
    pub(crate) fn record_failure(
        &mut self,
        failed: &FailedAttempt<'_>,
        pod: &mut PodRetryState,
        now: Instant,
    ) -> FailureOutcome {
        let Some(cause) = failed.cause else {
            return FailureOutcome { retry: Err(GiveUpReason::NotRetryable), ejected: None };
        };
        let separator = if self.summary.is_empty() { "" } else { "; " };
        // Writing to a string cannot fail.
        let _ = write!(self.summary, "{separator}{} {}", failed.to, cause.as_str());
        let ejected = self.record_fault(cause, failed, pod, now);
        let retry = if failed.picks == Picks::None {
            Err(GiveUpReason::NoOtherEndpoint)
        } else if self.attempts >= self.config.tries {
            Err(GiveUpReason::AttemptsExhausted)
        } else if now.duration_since(self.started) >= self.config.window {
            Err(GiveUpReason::OutOfTime)
        } else if !pod.budget.withdraw(now) {
            Err(GiveUpReason::BudgetExhausted)
        } else {
            Ok(())
        };
        FailureOutcome { retry, ejected }
    }

    /// Finds the workload at fault: the first peer for what it did itself; for a 503, what the first peer stands for.
    fn record_fault(
        &mut self,
        cause: Cause,
        failed: &FailedAttempt<'_>,
        pod: &mut PodRetryState,
        now: Instant,
    ) -> Option<Role> {
        match failed.picks {
            Picks::None => None,
            Picks::Peer(peer) => {
                self.mark_tried(peer);
                // A waypoint's 503 is about the endpoints behind it.
                let at_fault = peer.role != Role::Waypoint || cause != Cause::Unavailable;
                if at_fault { self.eject(peer, pod, now) } else { None }
            }
            Picks::ThroughGateway { remote, gateway } => {
                self.tried_remote.push(remote.workload.uid.clone());
                match (failed.hop, cause) {
                    // One of the endpoints behind it failed; the gateway chooses another one each time.
                    (Hop::Inner, _) => None,
                    (Hop::Outer, Cause::Unavailable) => self.eject(remote, pod, now),
                    (Hop::Outer, _) => {
                        self.mark_tried(gateway);
                        // The only gateway of a network cannot be ejected, but the endpoints behind it can.
                        let at_fault = if gateway.of > 1 { gateway } else { remote };
                        self.eject(at_fault, pod, now)
                    }
                }
            }
        }
    }

    /// A workload is tried when all addresses of its hostname are.
    fn mark_tried(&mut self, pick: &Pick) {
        let uid = || pick.workload.uid.clone();
        if let Some(host) = pick.host {
            self.tried_addresses.push((uid(), host.address));
        }
        if pick.host.is_none_or(|host| host.untried == 0) {
            self.tried.push(uid());
        }
    }

    fn eject(&mut self, pick: &Pick, pod: &mut PodRetryState, now: Instant) -> Option<Role> {
        let group = pick.group()?;
        let (role, uid) = (pick.role.as_str(), &pick.workload.uid);
        let outcome = pod.ejections.record_failure(&group, &pick.endpoint(), pick.of, now);
        // Writing to a string cannot fail.
        let _ = match outcome {
            EjectionOutcome::Ejected(time) => {
                write!(self.summary, ", {role} {uid} ejected for {}", ShortDuration(time))
            }
            EjectionOutcome::AlreadyEjected => write!(self.summary, ", {role} {uid} was ejected already"),
            EjectionOutcome::AtLimit => {
                write!(self.summary, ", {role} {uid} not ejected: half of {} at most", pick.of)
            }
        };
        matches!(outcome, EjectionOutcome::Ejected(_)).then_some(pick.role)
    }

    /// The peer accepted the connection.
    pub(crate) fn record_success(picks: Picks<'_>, pod: &mut PodRetryState, now: Instant) {
        for pick in picks.iter() {
            if let Some(group) = pick.group() {
                pod.ejections.record_success(&group, &pick.endpoint(), now);
            }
        }
    }

    /// Number of attempts, and a summary of those that failed and could be retried.
    pub(crate) fn summary(&self) -> (u32, &str) {
        (self.attempts, &self.summary)
    }
}

/// Whole seconds as `2s`, anything else as `500ms`.
struct ShortDuration(Duration);

impl std::fmt::Display for ShortDuration {
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
