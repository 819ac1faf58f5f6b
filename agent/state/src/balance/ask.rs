//! One question to a set of endpoints, and the part of it that decides the answer's odds. Questions with the same
//! [`View`] share a table.

use isthmus_model::service::{HealthPolicy, LbMode, LbScope};
use isthmus_model::{Health, NetworkId, Protocol, Service, Workload};

use super::locality;
use crate::target::{PortRule, Wanted, is_reachable};

/// Who wants an endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Origin<'a> {
    /// A workload, which has a place in the world.
    Client(&'a Workload),
    /// The gateway of a network: anybody in the mesh of its own network, none nearer than others.
    Gateway(&'a NetworkId),
}

/// Which endpoints count, by their health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Among {
    Healthy,
    All,
}

/// What is asked of a set of endpoints.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) origin: Origin<'a>,
    pub(crate) wanted: &'a Wanted<'a>,
}

/// Everything of a question that decides who takes part and who is near. Independent of the port where every endpoint
/// has it, and of those places of the client that the service does not ask for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct View {
    among: Among,
    origin: Where,
    /// The port, where endpoints must be asked for it; and what is asked, when the service does not declare it.
    port: Option<(u16, Option<PortRule>)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Where {
    Client { network: NetworkId, strict: bool, places: Box<[(LbScope, Box<str>)]> },
    Gateway(NetworkId),
}

impl Among {
    pub(crate) fn admits(self, workload: &Workload) -> bool {
        self == Self::All || workload.status == Health::Healthy
    }
}

impl Ask<'_> {
    /// The question without what does not matter, to be kept.
    pub(crate) fn view(&self) -> View {
        let origin = match self.origin {
            Origin::Gateway(network) => Where::Gateway(network.clone()),
            Origin::Client(source) => {
                let (strict, scopes) = preferences(self.wanted.service);
                let place = |scope: &LbScope| (*scope, locality::place(*scope, source).into());
                let places = scopes.iter().map(place).collect();
                Where::Client { network: source.network.clone(), strict, places }
            }
        };
        View { among: among(self.wanted.service), origin, port: self.particular_port() }
    }

    /// Whether that is this question's view.
    pub(crate) fn has(&self, view: &View) -> bool {
        let origin = match (&view.origin, self.origin) {
            (Where::Gateway(network), Origin::Gateway(own)) => network == own,
            (Where::Client { network, strict, places }, Origin::Client(source)) => {
                let (is_strict, scopes) = preferences(self.wanted.service);
                let here = |(at, scope): (&(LbScope, Box<str>), &LbScope)| {
                    at.0 == *scope && *at.1 == *locality::place(*scope, source)
                };
                *strict == is_strict
                    && places.len() == scopes.len()
                    && *network == source.network
                    && places.iter().zip(scopes).all(here)
            }
            _ => false,
        };
        origin && view.among == among(self.wanted.service) && view.port == self.particular_port()
    }

    /// How near an endpoint is, the nearer the higher; `None` when it takes no part.
    pub(crate) fn rank(&self, endpoint: &Workload) -> Option<usize> {
        let fit = among(self.wanted.service).admits(endpoint);
        if !fit || endpoint.capacity == 0 || self.wanted.port_of(endpoint).is_none() {
            return None;
        }
        match self.origin {
            Origin::Gateway(own) => is_here(endpoint, own).then_some(0),
            Origin::Client(source) if !is_reachable(endpoint, source) => None,
            Origin::Client(source) => match preferences(self.wanted.service) {
                (true, scopes) => locality::matches_all(source, endpoint, scopes).then_some(0),
                (false, scopes) => Some(locality::rank(source, endpoint, scopes)),
            },
        }
    }

    /// `None` when every endpoint has the port, because the service says which of theirs it is.
    fn particular_port(&self) -> Option<(u16, Option<PortRule>)> {
        match self.wanted.service.ports.get(&self.wanted.port) {
            Some(0) => Some((self.wanted.port, None)),
            Some(_) => None,
            None => Some((self.wanted.port, Some(self.wanted.rule))),
        }
    }
}

/// What stands for endpoints of another network is never a gateway's target.
pub(crate) fn is_here(workload: &Workload, own_network: &NetworkId) -> bool {
    workload.network == *own_network && workload.protocol == Protocol::Hbone && !workload.addresses.is_empty()
}

/// Which endpoints count for a service.
pub(crate) fn among(service: &Service) -> Among {
    match service.load_balancer.as_ref().map(|balancer| balancer.health_policy) {
        Some(HealthPolicy::AllowAll) => Among::All,
        Some(HealthPolicy::OnlyHealthy) | None => Among::Healthy,
    }
}

/// The scopes by which endpoints are ranked, and whether all of them must match.
fn preferences(service: &Service) -> (bool, &[LbScope]) {
    match &service.load_balancer {
        Some(balancer) => match balancer.mode {
            LbMode::Strict => (true, &balancer.routing_preferences),
            LbMode::Failover => (false, &balancer.routing_preferences),
            LbMode::Standard | LbMode::Passthrough => (false, &[]),
        },
        None => (false, &[]),
    }
}
