//! Whether an inbound connection may go on. Only [`authorize`] makes a [`Permit`], and forwarding takes one.
//!
//! A policy that the workload names and that has not arrived denies: what it would have said is not known, so nothing
//! is let through on its behalf.

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
/// ALLOW must match. Dry-run policies are only logged.
///
/// # Errors
/// When the connection must be refused, with the policy that says so.
pub fn authorize(snapshot: &Snapshot, workload: &Workload, facts: &Facts) -> Result<Permit, Denied> {
    let subject = Subject::new(facts);
    let of = |action: Action| {
        let known = snapshot.policies_for(workload).filter_map(|one| Some((one.key, one.policy?)));
        known.filter(move |(_, policy)| policy.action == action)
    };
    log_dry_runs(of(Action::Deny), &subject, facts);
    if let Some((key, _)) = of(Action::Deny).find(|(_, policy)| !policy.dry_run && subject.matches(policy)) {
        return Err(deny(key, Rejection::Denied));
    }
    if let Some(missing) = snapshot.policies_for(workload).find(|one| one.policy.is_none()) {
        return Err(deny(missing.key, Rejection::NotArrived));
    }
    log_dry_runs(of(Action::Allow), &subject, facts);
    let mut allowing = of(Action::Allow).filter(|(_, policy)| !policy.dry_run).peekable();
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

fn log_dry_runs<'a>(
    policies: impl Iterator<Item = (&'a PolicyKey, &'a Arc<Policy>)>,
    subject: &Subject<'_>,
    facts: &Facts,
) {
    for (key, policy) in policies.filter(|(_, policy)| policy.dry_run) {
        tracing::debug!(
            policy = %key,
            action = ?policy.action,
            matched = subject.matches(policy),
            source = %facts.source,
            destination = %facts.destination,
            "dry-run policy"
        );
    }
}

#[cfg(test)]
mod tests;
