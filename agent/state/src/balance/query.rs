//! A query for an endpoint of a service, and the part of it that decides the odds: queries with the same [`TableKey`]
//! share a table.

use isthmus_model::service::{HealthPolicy, LbMode, LbScope};
use isthmus_model::{Health, NetworkId, Protocol, Service, Workload};

use super::locality;
use crate::target::{PortRule, ServicePort, is_reachable};

/// What the endpoint is wanted for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum QueryOrigin<'a> {
    /// A client workload, whose locality ranks the endpoints.
    Client(&'a Workload),
    /// The east-west gateway of a network: HBONE endpoints of its own network only, all of one rank.
    Gateway(&'a NetworkId),
}

/// Which endpoints qualify by their health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HealthFilter {
    Healthy,
    All,
}

/// A query to the endpoint set of a service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EndpointQuery<'a> {
    pub(crate) origin: QueryOrigin<'a>,
    pub(crate) service_port: &'a ServicePort<'a>,
}

/// Everything in a query that decides which endpoints take part and how they rank. The port is left out where every
/// endpoint has it, and so are the parts of the client's locality that the service does not rank by; so most queries to
/// one service share a key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TableKey {
    health: HealthFilter,
    scope: ClientScope,
    /// The port, where only some endpoints have it; with the rule, where the service does not declare it.
    port: Option<(u16, Option<PortRule>)>,
}

#[derive(Debug, PartialEq, Eq)]
enum ClientScope {
    Client { network: NetworkId, strict: bool, localities: Box<[(LbScope, Box<str>)]> },
    Gateway(NetworkId),
}

impl HealthFilter {
    pub(crate) fn admits(self, workload: &Workload) -> bool {
        self == Self::All || workload.status == Health::Healthy
    }
}

impl EndpointQuery<'_> {
    /// The key under which the table for this query is kept.
    pub(crate) fn key(&self) -> TableKey {
        let scope = match self.origin {
            QueryOrigin::Gateway(network) => ClientScope::Gateway(network.clone()),
            QueryOrigin::Client(source) => {
                let (strict, scopes) = preferences(self.service_port.service);
                let locality = |scope: &LbScope| (*scope, locality::value(*scope, source).into());
                let localities = scopes.iter().map(locality).collect();
                ClientScope::Client { network: source.network.clone(), strict, localities }
            }
        };
        TableKey { health: health_filter(self.service_port.service), scope, port: self.distinguishing_port() }
    }

    /// Whether `key` is this query's key. Unlike [`Self::key`] it allocates nothing, since every decision compares.
    pub(crate) fn has(&self, key: &TableKey) -> bool {
        let scope = match (&key.scope, self.origin) {
            (ClientScope::Gateway(network), QueryOrigin::Gateway(own)) => network == own,
            (ClientScope::Client { network, strict, localities }, QueryOrigin::Client(source)) => {
                let (is_strict, scopes) = preferences(self.service_port.service);
                let same = |(kept, scope): (&(LbScope, Box<str>), &LbScope)| {
                    kept.0 == *scope && *kept.1 == *locality::value(*scope, source)
                };
                *strict == is_strict
                    && localities.len() == scopes.len()
                    && *network == source.network
                    && localities.iter().zip(scopes).all(same)
            }
            _ => false,
        };
        scope
            && key.health == health_filter(self.service_port.service)
            && key.port == self.distinguishing_port()
    }

    /// How near an endpoint is, the nearer the higher; `None` when it does not take part.
    pub(crate) fn rank(&self, endpoint: &Workload) -> Option<usize> {
        let healthy = health_filter(self.service_port.service).admits(endpoint);
        if !healthy || endpoint.capacity == 0 || self.service_port.port_of(endpoint).is_none() {
            return None;
        }
        match self.origin {
            QueryOrigin::Gateway(own) => is_gateway_endpoint(endpoint, own).then_some(0),
            QueryOrigin::Client(source) if !is_reachable(endpoint, source) => None,
            QueryOrigin::Client(source) => match preferences(self.service_port.service) {
                (true, scopes) => locality::matches_all(source, endpoint, scopes).then_some(0),
                (false, scopes) => Some(locality::rank(source, endpoint, scopes)),
            },
        }
    }

    /// `None` when every endpoint has the port, because the service itself declares the target port.
    fn distinguishing_port(&self) -> Option<(u16, Option<PortRule>)> {
        match self.service_port.service.ports.get(&self.service_port.port) {
            Some(0) => Some((self.service_port.port, None)),
            Some(_) => None,
            None => Some((self.service_port.port, Some(self.service_port.rule))),
        }
    }
}

/// Whether a gateway of `own_network` may forward to this workload. A workload of another network is never one, so that
/// two gateways cannot send a connection in circles.
pub(crate) fn is_gateway_endpoint(workload: &Workload, own_network: &NetworkId) -> bool {
    workload.network == *own_network && workload.protocol == Protocol::Hbone && !workload.addresses.is_empty()
}

/// Which endpoints of a service qualify by their health.
pub(crate) fn health_filter(service: &Service) -> HealthFilter {
    match service.load_balancer.as_ref().map(|balancer| balancer.health_policy) {
        Some(HealthPolicy::AllowAll) => HealthFilter::All,
        Some(HealthPolicy::OnlyHealthy) | None => HealthFilter::Healthy,
    }
}

/// The scopes by which endpoints rank, and whether all of them must match.
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
