//! What this connection, and those before it, have learnt: for the decision where to go next.

use std::net::IpAddr;

use isthmus_model::{Hostname, NetworkId, Protocol};
use isthmus_state::{Candidate, Hints, Role};
use tokio::time::Instant;

use super::ejection::Ejections;
use super::state::{PodRetryState, RetryState};

/// For one decision.
pub(crate) struct Learnt<'a> {
    /// `None` when nobody is out.
    pub(crate) ejections: Option<&'a Ejections>,
    pub(crate) now: Instant,
    pub(crate) tries: &'a RetryState,
    /// Whether those that stand for others may be tried again.
    pub(crate) stand_ins_again: bool,
    /// The client's network.
    pub(crate) network: &'a NetworkId,
    pub(crate) names: &'a [(Hostname, IpAddr)],
}

impl Hints for Learnt<'_> {
    fn avoids(&self, candidate: &Candidate<'_>) -> bool {
        let uid = &candidate.workload.uid;
        let tried = self.tries.tried.contains(uid)
            || (!self.stand_ins_again && self.tries.tried_stand_ins.contains(uid));
        tried || self.is_weaker(candidate) || self.is_out(candidate)
    }

    fn address_of(&self, hostname: &Hostname) -> Option<IpAddr> {
        self.names.iter().find(|(name, _)| name == hostname).map(|(_, address)| *address)
    }
}

impl<'a> Learnt<'a> {
    /// Of those who were tried before, by this connection and by others.
    pub(crate) fn of(experience: &'a PodRetryState, tries: &'a RetryState, network: &'a NetworkId) -> Self {
        let ejections = Some(&experience.ejections).filter(|ejections| !ejections.is_empty());
        Self { ejections, now: Instant::now(), tries, stand_ins_again: false, network, names: &[] }
    }

    /// What is on another network is tunnelled through its gateway whatever it speaks there.
    fn is_weaker(&self, candidate: &Candidate<'_>) -> bool {
        self.tries.must_be_tunnelled()
            && candidate.role == Role::Endpoint
            && candidate.workload.protocol == Protocol::Tcp
            && candidate.workload.network == *self.network
    }

    fn is_out(&self, candidate: &Candidate<'_>) -> bool {
        let (Some(ejections), Some(service)) = (self.ejections, candidate.service) else { return false };
        ejections.is_out(service, candidate.port, &candidate.workload.uid, self.now)
    }
}
