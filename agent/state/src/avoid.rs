//! Endpoints that a connection must not be sent to for now: a plain value that the caller builds before it asks for a
//! route, so that a decision reads nothing but its arguments. How endpoints get ejected is the caller's business.

use std::collections::HashMap;
use std::net::IpAddr;

use isthmus_model::{NamespacedHostname, NetworkId, Protocol, Workload, WorkloadUid};
use tokio::time::Instant;

use crate::endpoint::{EndpointGroup, EndpointId};
use crate::route::Role;

/// What one decision must avoid. The default avoids nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Avoid<'a> {
    /// Workloads that this connection has tried, by uid.
    pub tried: &'a [WorkloadUid],
    /// Workloads that stand for the endpoints of another network and that this connection has tried. Kept apart because
    /// the gateway behind one of them chooses anew each time: the caller may leave them out when nothing else is left.
    pub tried_remote: &'a [WorkloadUid],
    /// Addresses of workloads that are known by a hostname only and that this connection has tried: see
    /// [`crate::choose_address`].
    pub tried_addresses: &'a [(WorkloadUid, IpAddr)],
    /// Outlier ejections of the caller's pod; `None` when there are none.
    pub ejected: Option<Ejected<'a>>,
    /// Whether an endpoint that would be reached in plaintext is out of the question, because the connection was tunnelled
    /// in an earlier attempt. Endpoints of another network are tunnelled to its gateway whatever they speak there.
    pub tunnelled_only: bool,
}

/// Ejections as they stand at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Ejected<'a> {
    /// Every ejection that is remembered, over or not.
    pub endpoints: &'a EjectedEndpoints,
    /// The moment.
    pub now: Instant,
}

/// Ejections by endpoint group and endpoint.
pub type EjectedEndpoints = HashMap<EndpointGroup, HashMap<EndpointId, Ejection>>;

/// The ejection of one endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ejection {
    /// When it ends. The endpoint may be chosen again from then on.
    pub until: Instant,
    /// Number of ejections in a row, from which the caller derives the length of the next one. Not read here.
    pub strikes: u32,
}

/// A workload that may be chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) role: Role,
    /// The service it would be chosen for: the one addressed, or the waypoint's or gateway's own. `None` when the
    /// reference or address names this workload alone.
    pub(crate) service: Option<&'a NamespacedHostname>,
    /// The port of that service; without a service, of the workload.
    pub(crate) port: u16,
    pub(crate) workload: &'a Workload,
}

// === impl Avoid ===

impl Avoid<'_> {
    /// Whether the candidate must not be chosen by a client on `network`.
    pub(crate) fn contains(&self, candidate: &Candidate<'_>, network: &NetworkId) -> bool {
        let uid = &candidate.workload.uid;
        self.tried.contains(uid)
            || self.tried_remote.contains(uid)
            || (self.tunnelled_only && is_plaintext(candidate, network))
            || self.ejected.is_some_and(|ejected| ejected.contains(candidate))
    }

    /// Whether this connection has tried an address of a workload's hostname.
    pub(crate) fn has_tried(&self, workload: &WorkloadUid, address: IpAddr) -> bool {
        self.tried_addresses.iter().any(|(uid, tried)| uid == workload && *tried == address)
    }
}

fn is_plaintext(candidate: &Candidate<'_>, network: &NetworkId) -> bool {
    candidate.role == Role::Endpoint
        && candidate.workload.protocol == Protocol::Tcp
        && candidate.workload.network == *network
}

// === impl Ejected ===

impl Ejected<'_> {
    fn contains(&self, candidate: &Candidate<'_>) -> bool {
        let Some(service) = candidate.service else { return false };
        // Names are shared text: the clone allocates nothing.
        let group = EndpointGroup { service: service.clone(), port: candidate.port };
        self.has(&group, &EndpointId { workload: candidate.workload.uid.clone(), address: None })
    }

    /// Whether the ejection of an endpoint is not over.
    pub(crate) fn has(&self, group: &EndpointGroup, endpoint: &EndpointId) -> bool {
        let ejection = self.endpoints.get(group).and_then(|group| group.get(endpoint));
        ejection.is_some_and(|ejection| ejection.until > self.now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::fixture::{NETWORK, REMOTE, pod, service};

    fn candidate<'a>(workload: &'a Workload, service: &'a NamespacedHostname) -> Candidate<'a> {
        Candidate { role: Role::Endpoint, service: Some(service), port: 80, workload }
    }

    #[test]
    fn tried_workloads_are_avoided_and_others_are_not() {
        let (workload, key) = (pod("a", "10.0.0.1"), service("web", "").key());
        let (this, other) = ([workload.uid.clone()], ["c//Pod/ns/b".into()]);
        let avoids = |avoid: Avoid<'_>| avoid.contains(&candidate(&workload, &key), &NETWORK.into());
        assert!(!avoids(Avoid::default()));
        assert!(avoids(Avoid { tried: &this, ..Avoid::default() }));
        assert!(avoids(Avoid { tried_remote: &this, ..Avoid::default() }));
        assert!(!avoids(Avoid { tried: &other, tried_remote: &other, ..Avoid::default() }));
    }

    #[test]
    fn tunnelled_only_avoids_plaintext_endpoints_of_the_clients_own_network() {
        let key = service("web", "").key();
        let avoid = Avoid { tunnelled_only: true, ..Avoid::default() };
        for (protocol, network, role, want) in [
            (Protocol::Tcp, NETWORK, Role::Endpoint, true),
            (Protocol::Hbone, NETWORK, Role::Endpoint, false),
            (Protocol::Tcp, REMOTE, Role::Endpoint, false),
            (Protocol::Tcp, NETWORK, Role::Waypoint, false),
            (Protocol::Tcp, NETWORK, Role::Gateway, false),
        ] {
            let workload = Workload { protocol, network: network.into(), ..pod("a", "10.0.0.1") };
            let candidate = Candidate { role, ..candidate(&workload, &key) };
            let got = avoid.contains(&candidate, &NETWORK.into());
            assert_eq!(got, want, "{protocol:?} {network} {role:?}");
            assert!(!Avoid::default().contains(&candidate, &NETWORK.into()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_ejection_counts_for_one_port_of_one_service_until_it_ends() {
        let (workload, other) = (pod("a", "10.0.0.1"), pod("b", "10.0.0.2"));
        let (web, db) = (service("web", "").key(), service("db", "").key());
        let until = Instant::now() + Duration::from_secs(1);
        let group = EndpointGroup { service: web.clone(), port: 80 };
        let endpoint = EndpointId { workload: workload.uid.clone(), address: None };
        let entry = [(endpoint, Ejection { until, strikes: 1 })];
        let endpoints: EjectedEndpoints = [(group, entry.into())].into();
        let avoids = |candidate: Candidate<'_>| {
            let ejected = Ejected { endpoints: &endpoints, now: Instant::now() };
            Avoid { ejected: Some(ejected), ..Avoid::default() }.contains(&candidate, &NETWORK.into())
        };
        assert!(avoids(candidate(&workload, &web)));
        assert!(!avoids(candidate(&other, &web)));
        assert!(!avoids(candidate(&workload, &db)));
        assert!(!avoids(Candidate { port: 81, ..candidate(&workload, &web) }));
        assert!(!avoids(Candidate { service: None, ..candidate(&workload, &web) }));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!avoids(candidate(&workload, &web)));
    }
}
