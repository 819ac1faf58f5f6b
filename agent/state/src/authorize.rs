//! Authorization of inbound connections. Only [`authorize`] makes a [`Permit`], and forwarding takes one.
//!
//! A policy that the workload names and that has not arrived denies: its verdict is not known, so the connection is
//! refused rather than allowed by mistake. Whether to wait for it is up to the caller: see [`Denied::is_pending`].

mod matcher;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use isthmus_model::{Action, Facts, Policy, PolicyKey, SpiffeId, Workload};

use crate::snapshot::Snapshot;
use matcher::Subject;

/// Proof that policy allowed one connection. It owns the facts that policies were evaluated for and cannot be cloned: a
/// caller forwards one connection, to the destination that was allowed.
#[derive(PartialEq, Eq, Debug)]
pub struct Permit {
    facts: Facts,
    allowed_by: Option<PolicyKey>,
}

/// The policies refuse a connection.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Denied {
    /// The policy that refuses it; `None` when there are ALLOW policies and none of them matches.
    pub policy: Option<PolicyKey>,
    /// Why.
    pub reason: Rejection,
}

/// Why a connection is refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Rejection {
    /// A DENY policy matches.
    Denied(PolicyKey),
    /// The workload names a policy that has not arrived.
    NotArrived(PolicyKey),
    /// There are ALLOW policies and none of them matches.
    NotAllowed,
}

// === impl Permit ===

impl Permit {
    /// The destination that policy allowed: the only one that the connection may be forwarded to.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        self.facts.destination
    }

    /// The client's address.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        self.facts.source
    }

    /// The identity that the client proved; `None` for plaintext.
    #[must_use]
    pub fn peer(&self) -> Option<&SpiffeId> {
        self.facts.peer.as_ref()
    }

    /// The ALLOW policy that matched; `None` when no ALLOW policy applies to the workload.
    #[must_use]
    pub fn allowed_by(&self) -> Option<&PolicyKey> {
        self.allowed_by.as_ref()
    }
}

// === impl Denied ===

impl Denied {
    /// Whether the verdict may change soon: a policy that applies has not arrived, and no policy that has arrived denies.
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
            Self::NotArrived(policy) => {
                write!(f, "policy {policy} applies to the workload but the control plane has not sent it yet")
            }
            Self::NotAllowed => f.write_str("allow policies exist, but none allowed"),
        }
    }
}

/// Authorizes a connection to `workload`: a matching DENY policy refuses it; without any ALLOW policy it is allowed;
/// otherwise an ALLOW policy must match. Dry-run policies have no effect on it: the verdict that there would be with each
/// of them is logged.
///
/// # Errors
/// When the connection must be refused, with the policy that refuses it.
pub fn authorize(snapshot: &Snapshot, workload: &Workload, facts: &Facts) -> Result<Permit, Denied> {
    let subject = Subject::new(facts).with_aliases(snapshot.trust_domains(), &workload.trust_domain);
    let verdict = enforce(snapshot, workload, &subject);
    let at_info = snapshot.options().log_dry_run_at_info;
    let logged = if at_info {
        tracing::enabled!(tracing::Level::INFO)
    } else {
        tracing::enabled!(tracing::Level::DEBUG)
    };
    if logged {
        let dry = applicable(snapshot, workload).filter(|(_, policy)| policy.dry_run);
        dry.for_each(|(key, policy)| log_dry_run(at_info, key, policy, &subject, &verdict));
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
    let permit = |allowed_by| Permit { facts: subject.facts().clone(), allowed_by };
    let mut allowing = of(Action::Allow).peekable();
    if allowing.peek().is_none() {
        return Ok(permit(None));
    }
    match allowing.find(|(_, policy)| subject.matches(policy)) {
        Some((key, _)) => Ok(permit(Some(key.clone()))),
        None => Err(Denied { policy: None, reason: Rejection::NotAllowed }),
    }
}

fn deny(policy: &PolicyKey, reason: impl FnOnce(PolicyKey) -> Rejection) -> Denied {
    Denied { policy: Some(policy.clone()), reason: reason(policy.clone()) }
}

fn log_dry_run(
    at_info: bool,
    key: &PolicyKey,
    policy: &Policy,
    subject: &Subject<'_>,
    verdict: &Result<Permit, Denied>,
) {
    let matched = subject.matches(policy);
    let facts = subject.facts();
    // The level is part of the static call site, so there is one per level.
    macro_rules! log {
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
    if at_info { log!(info) } else { log!(debug) }
}

/// The verdict that there would be if the dry-run policy were enforced beside the others.
fn would_allow(action: Action, matched: bool, verdict: &Result<Permit, Denied>) -> bool {
    match (action, matched, verdict) {
        (Action::Deny, true, _) => false,
        (Action::Deny, false, verdict) => verdict.is_ok(),
        (Action::Allow, true, Ok(_)) => true,
        (Action::Allow, true, Err(denied)) => denied.reason == Rejection::NotAllowed,
        // With one more ALLOW policy at least one has to match, so a permit without a match becomes a refusal.
        (Action::Allow, false, Ok(permit)) => permit.allowed_by.is_some(),
        (Action::Allow, false, Err(_)) => false,
    }
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
