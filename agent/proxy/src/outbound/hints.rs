//! What this connection, and those before it, have learnt: for the decision where to go next.

use std::net::IpAddr;

use isthmus_model::{Hostname, NetworkId, Protocol};
use isthmus_state::{Candidate, Hints, Role};
use tokio::time::Instant;

use super::ejection::Ejections;
use super::retry::Tries;

/// For one decision.
pub(super) struct Learnt<'a> {
    /// `None` when nobody is out.
    pub(super) ejections: Option<&'a Ejections>,
    pub(super) now: Instant,
    pub(super) tries: &'a Tries,
    /// Whether those that stand for others may be tried again.
    pub(super) stand_ins_again: bool,
    /// The client's network.
    pub(super) network: &'a NetworkId,
    pub(super) names: &'a [(Hostname, IpAddr)],
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

impl Learnt<'_> {
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
