//! Whether an inbound connection may go on. Only [`authorize`] makes a [`Permit`], and forwarding takes one.
//!
//! A policy that the workload names and that has not arrived denies: what it would have said is not known, so nothing
//! is let through on its behalf. Whether that is waited out is the caller's to say: see [`Denied::is_pending`].

mod matcher;

use std::fmt;
use std::sync::Arc;

use isthmus_model::{Action, Facts, Policy, PolicyKey, Workload};

use crate::snapshot::Snapshot;
use matcher::Subject;

/// Proof that a connection was judged and let through.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Permit {
    allowed_by: Option<PolicyKey>,
}

/// A connection was judged and refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Denied {
    /// The policy that refused it; `None` when it was the lack of one that allows.
    pub policy: Option<PolicyKey>,
    /// Why.
    pub reason: Rejection,
}

/// Why a connection was refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Rejection {
    /// A DENY policy matched.
    Denied(PolicyKey),
    /// The workload names a policy that has not arrived.
    NotArrived(PolicyKey),
    /// There are ALLOW policies and none of them matched.
    NotAllowed,
}

// === impl Permit ===

impl Permit {
    /// The ALLOW policy that let it through; `None` when there is none for this workload.
    #[must_use]
    pub fn allowed_by(&self) -> Option<&PolicyKey> {
        self.allowed_by.as_ref()
    }
}

// === impl Denied ===

impl Denied {
    /// Whether this is no verdict yet: a policy that applies has not arrived, and none that has refuses.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        matches!(self.reason, Rejection::NotArrived(_))
    }
}

// === impl Rejection ===

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(policy) => write!(f, "explicitly denied by: {policy}"),
            Self::NotArrived(policy) => write!(f, "policy {policy} applies but has not arrived"),
            Self::NotAllowed => f.write_str("allow policies exist, but none allowed"),
        }
    }
}

/// Judges a connection to `workload`: a DENY that matches refuses; without any ALLOW it goes through; otherwise an
/// ALLOW must match. Dry-run policies change nothing: what each of them would have made of the connection is logged.
///
/// # Errors
/// When the connection must be refused, with the policy that says so.
pub fn authorize(snapshot: &Snapshot, workload: &Workload, facts: &Facts) -> Result<Permit, Denied> {
    let subject = Subject::new(facts).known_as(snapshot.trust_domains(), &workload.trust_domain);
    let verdict = enforce(snapshot, workload, &subject);
    let loud = snapshot.options().log_dry_run_at_info;
    let logged =
        if loud { tracing::enabled!(tracing::Level::INFO) } else { tracing::enabled!(tracing::Level::DEBUG) };
    if logged {
        let dry = applicable(snapshot, workload).filter(|(_, policy)| policy.dry_run);
        dry.for_each(|(key, policy)| log_dry_run(loud, key, policy, &subject, &verdict));
    }
    verdict
}

fn applicable<'a>(
    snapshot: &'a Snapshot,
    workload: &'a Workload,
) -> impl Iterator<Item = (&'a PolicyKey, &'a Arc<Policy>)> {
    snapshot.policies_for(workload).filter_map(|one| Some((one.key, one.policy?)))
}

fn enforce(snapshot: &Snapshot, workload: &Workload, subject: &Subject<'_>) -> Result<Permit, Denied> {
    let of = |action: Action| {
        applicable(snapshot, workload).filter(move |(_, policy)| policy.action == action && !policy.dry_run)
    };
    if let Some((key, _)) = of(Action::Deny).find(|(_, policy)| subject.matches(policy)) {
        return Err(deny(key, Rejection::Denied));
    }
    if let Some(missing) = snapshot.policies_for(workload).find(|one| one.policy.is_none()) {
        return Err(deny(missing.key, Rejection::NotArrived));
    }
    let mut allowing = of(Action::Allow).peekable();
    if allowing.peek().is_none() {
        return Ok(Permit { allowed_by: None });
    }
    match allowing.find(|(_, policy)| subject.matches(policy)) {
        Some((key, _)) => Ok(Permit { allowed_by: Some(key.clone()) }),
        None => Err(Denied { policy: None, reason: Rejection::NotAllowed }),
    }
}

fn deny(policy: &PolicyKey, reason: impl FnOnce(PolicyKey) -> Rejection) -> Denied {
    Denied { policy: Some(policy.clone()), reason: reason(policy.clone()) }
}

fn log_dry_run(
    loud: bool,
    key: &PolicyKey,
    policy: &Policy,
    subject: &Subject<'_>,
    verdict: &Result<Permit, Denied>,
) {
    let matched = subject.matches(policy);
    let facts = subject.facts();
    // A line's level is part of the place that writes it, so there are two.
    macro_rules! say {
        ($level:ident) => {
            tracing::$level!(
                policy = %key,
                action = ?policy.action,
                matched,
                verdict = if would_allow(policy.action, matched, verdict) { "allow" } else { "deny" },
                identity = facts.peer.as_ref().map(tracing::field::display),
                source = %facts.source,
                destination = %facts.destination,
                "dry-run policy"
            )
        };
    }
    if loud { say!(info) } else { say!(debug) }
}

/// What the verdict would have been had a dry-run policy been enforced beside the others.
fn would_allow(action: Action, matched: bool, verdict: &Result<Permit, Denied>) -> bool {
    match (action, matched, verdict) {
        (Action::Deny, true, _) => false,
        (Action::Deny, false, verdict) => verdict.is_ok(),
        (Action::Allow, true, Ok(_)) => true,
        (Action::Allow, true, Err(denied)) => denied.reason == Rejection::NotAllowed,
        // It would have been one more that allows, so somebody had to.
        (Action::Allow, false, Ok(permit)) => permit.allowed_by.is_some(),
        (Action::Allow, false, Err(_)) => false,
    }
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
