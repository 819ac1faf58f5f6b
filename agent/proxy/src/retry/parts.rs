//! What a pod has learnt of its upstreams, as plain values for another process.

use std::time::Duration;

use isthmus_state::{EndpointGroup, EndpointId};
use tokio::time::Instant;

use super::state::PodRetryState;

/// Retry budget and ejections of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RetryParts {
    /// Of the retry budget.
    pub(crate) tokens: u64,
    pub(crate) ejections: Vec<EjectionParts>,
}

/// One endpoint that was ejected, and may still be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EjectionParts {
    pub(crate) group: EndpointGroup,
    pub(crate) endpoint: EndpointId,
    /// For how much longer.
    pub(crate) left: Duration,
    pub(crate) strikes: u32,
}

impl PodRetryState {
    /// A copy.
    pub(crate) fn parts(&mut self, now: Instant) -> RetryParts {
        let part = |(group, endpoint, left, strikes)| EjectionParts { group, endpoint, left, strikes };
        let ejections = self.ejections.parts(now).into_iter().map(part).collect();
        RetryParts { tokens: self.budget.tokens(now), ejections }
    }

    /// Adds what another process has learnt of the pod's upstreams. Neither process may retry more than one of them could.
    pub(crate) fn merge(&mut self, parts: RetryParts, now: Instant) {
        self.budget.lower(parts.tokens);
        for EjectionParts { group, endpoint, left, strikes } in parts.ejections {
            self.ejections.merge(group, endpoint, left, strikes, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use isthmus_model::NamespacedHostname;

    use super::*;
    use crate::config::Retry;

    #[test]
    fn a_successor_knows_the_ejections_and_has_no_larger_budget() {
        let now = Instant::now();
        let service = NamespacedHostname { namespace: "ns".into(), hostname: "web".into() };
        let group = EndpointGroup { service, port: 80 };
        let endpoint = EndpointId { workload: "a".into(), address: None };
        let mut old = PodRetryState::new(&Retry::default(), now);
        old.ejections.record_failure(&group, &endpoint, 2, now);
        let spent = (0..1_000_000).find(|_| !old.budget.withdraw(now));
        assert!(spent.is_some(), "the budget has no end");
        let parts = old.parts(now);
        let mut new = PodRetryState::new(&Retry::default(), now);
        new.merge(parts.clone(), now);
        assert!(!new.budget.withdraw(now));
        assert_eq!(new.parts(now), parts);
        let later = now + parts.ejections[0].left;
        assert_eq!(new.parts(later).ejections[0].left, Duration::ZERO);
    }
}
