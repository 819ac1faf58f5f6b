//! From (source workload, original destination) to a route. The order of the questions is the contract with the other
//! implementations of the mesh, so it is spelled out in [`resolve`] and nowhere else.

mod reference;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use isthmus_model::service::LbMode;
use isthmus_model::{
    Authority, GatewayAddress, NetworkAddress, NetworkId, Protocol, Service, SpiffeId, Workload,
};

use crate::balance;
use crate::route::{DenyReason, Destination, Inner, Reason, Resolved, Route, Upstream};
use crate::snapshot::Snapshot;
use crate::target::{HBONE_PORT, ILLEGAL_PORTS, PortRule, Wanted, address_of};

pub(crate) use reference::{is_waypoint, resolve_reference};

/// Decides what becomes of a connection of `source` to `original`.
///
/// In this order: the agent's own ports are refused; a service with a waypoint goes there; an address of a service
/// goes to one of its endpoints, an address of a workload to that; what is on another network goes through its
/// gateway; a workload with a waypoint, addressed directly, goes there; the rest goes directly. What nothing is known
/// of passes through. The outcome depends on nothing but the arguments.
pub fn resolve(
    snapshot: &Snapshot,
    source: &Workload,
    original: SocketAddr,
    own_network: &NetworkId,
    rng: &mut fastrand::Rng,
) -> Resolved {
    let original = SocketAddr::new(original.ip().to_canonical(), original.port());
    if original.ip().is_loopback() && ILLEGAL_PORTS.contains(&original.port()) {
        return Resolved::deny(DenyReason::Recursive, Destination::default());
    }
    Resolver { snapshot, source, original, rng }.run(own_network)
}

struct Resolver<'s, 'r> {
    snapshot: &'s Snapshot,
    source: &'s Workload,
    original: SocketAddr,
    rng: &'r mut fastrand::Rng,
}

/// A workload that was chosen, with the address and port to reach it at.
pub(crate) struct Chosen<'s> {
    pub(crate) workload: &'s Arc<Workload>,
    /// The service it was chosen for.
    pub(crate) service: Option<&'s Arc<Service>>,
    /// `None` for a workload that stands for others on another network, or one that is known by name only.
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: u16,
}

/// What is at the original destination.
enum Found<'s> {
    Chosen(Chosen<'s>),
    /// A service none of whose endpoints qualifies.
    NoneOf(&'s Arc<Service>),
    /// A service that asks for no load balancing.
    Passthrough,
    Nothing,
}

// === impl Chosen ===

impl Chosen<'_> {
    fn socket(&self) -> Result<SocketAddr, DenyReason> {
        match self.address {
            Some(address) => Ok(SocketAddr::new(address, self.port)),
            None if !self.workload.addresses.is_empty() || self.workload.hostname.is_empty() => {
                Err(DenyReason::NoAddress(self.workload.uid.clone()))
            }
            None => Err(DenyReason::HostnameOnly {
                workload: self.workload.uid.clone(),
                hostname: self.workload.hostname.clone(),
            }),
        }
    }

    /// Identities of which this peer must prove one: the service's, and the workload's own.
    fn identities(&self) -> Vec<SpiffeId> {
        let mut identities =
            self.service.map(|service| service.subject_alt_names.clone()).unwrap_or_default();
        let own = self.workload.identity();
        if !identities.contains(&own) {
            identities.push(own);
        }
        identities
    }

    fn destination(&self) -> Destination {
        Destination { workload: Some(Arc::clone(self.workload)), service: self.service.cloned() }
    }
}

// === impl Resolver ===

impl<'s> Resolver<'s, '_> {
    fn run(mut self, own_network: &NetworkId) -> Resolved {
        let snapshot = self.snapshot;
        let here = NetworkAddress { network: own_network.clone(), address: self.original.ip() };
        // A workload's address is never taken for a service's here, though it is below: an endpoint may be given the
        // address of its service, and then a connection to it must not go round by the waypoint.
        let addressed = match snapshot.workload_by_addr(&here) {
            Some(_) => None,
            None => snapshot.service_by_vip(&here, Some(&self.source.namespace)),
        };
        if let Some(service) = addressed
            && let Some(waypoint) = service_waypoint(service, self.rng)
        {
            return self.through_waypoint(waypoint, Some(service), Reason::ServiceWaypoint);
        }
        match self.upstream() {
            Found::Chosen(chosen) => self.towards(&chosen, addressed.is_some()),
            Found::NoneOf(service) => Resolved::deny(
                DenyReason::NoHealthyUpstream(self.original),
                Destination { workload: None, service: Some(Arc::clone(service)) },
            ),
            Found::Passthrough => self.passthrough(Reason::PassthroughService),
            Found::Nothing => self.passthrough(Reason::Unknown),
        }
    }

    /// The service of the destination, or else the workload there.
    fn upstream(&mut self) -> Found<'s> {
        let (snapshot, source) = (self.snapshot, self.source);
        let there = NetworkAddress { network: source.network.clone(), address: self.original.ip() };
        if let Some(service) = snapshot.service_by_vip(&there, Some(&source.namespace)) {
            if is_passthrough(service) {
                return Found::Passthrough;
            }
            let wanted = Wanted::new(service, self.original.port(), PortRule::Standard);
            let chosen = choose(snapshot, source, service, &wanted, self.original.ip(), self.rng);
            return chosen.map_or(Found::NoneOf(service), Found::Chosen);
        }
        match snapshot.workload_by_addr(&there) {
            Some(workload) => Found::Chosen(Chosen {
                workload,
                service: None,
                address: Some(self.original.ip()),
                port: self.original.port(),
            }),
            None => Found::Nothing,
        }
    }

    fn passthrough(&self, reason: Reason) -> Resolved {
        let route = Route::Passthrough { to: self.original };
        Resolved { route, reason, destination: Destination::default() }
    }

    fn towards(&mut self, chosen: &Chosen<'s>, service_addressed: bool) -> Resolved {
        if chosen.workload.network != self.source.network {
            let service = chosen.service;
            return self.through_gateway(chosen, service, service, Reason::OtherNetwork);
        }
        let waypoint = chosen.workload.waypoint.as_ref().filter(|_| !service_addressed);
        if let Some(waypoint) = waypoint
            && !is_waypoint(self.snapshot, waypoint, &self.source.uid)
        {
            return self.through_waypoint(waypoint, None, Reason::WorkloadWaypoint);
        }
        self.direct(chosen)
    }

    fn direct(&self, chosen: &Chosen<'s>) -> Resolved {
        let destination = chosen.destination();
        let target = match chosen.socket() {
            Ok(target) => target,
            Err(reason) => return Resolved::deny(reason, destination),
        };
        let upstream = |tcp_to, identities| Upstream {
            tcp_to,
            authority: Authority::Ip(target),
            identities,
            inner: None,
            workload: Arc::clone(chosen.workload),
            service: chosen.service.cloned(),
        };
        let route = match chosen.workload.protocol {
            Protocol::Hbone => {
                Route::Hbone(upstream(SocketAddr::new(target.ip(), HBONE_PORT), chosen.identities()))
            }
            Protocol::Tcp => Route::Tcp(upstream(target, Vec::new())),
        };
        let reason = if chosen.service.is_some() { Reason::Service } else { Reason::Workload };
        Resolved { route, reason, destination }
    }

    /// A waypoint that is set is never bypassed. `service` is the one that was addressed, if one was.
    fn through_waypoint(
        &mut self,
        waypoint: &GatewayAddress,
        service: Option<&'s Arc<Service>>,
        reason: Reason,
    ) -> Resolved {
        let asked = || Destination { workload: None, service: service.cloned() };
        let found = resolve_reference(
            self.snapshot,
            self.source,
            waypoint,
            PortRule::Waypoint,
            self.original.ip(),
            self.rng,
        );
        let Some(chosen) = found else {
            return Resolved::deny(DenyReason::UnknownWaypoint(waypoint.destination.clone()), asked());
        };
        if chosen.workload.network != self.source.network {
            let proven_by = chosen.service;
            return self.through_gateway(&chosen, service, proven_by, reason);
        }
        let tcp_to = match chosen.socket() {
            Ok(tcp_to) => tcp_to,
            Err(reason) => return Resolved::deny(reason, asked()),
        };
        Resolved {
            route: Route::Hbone(Upstream {
                tcp_to,
                authority: Authority::Ip(self.original),
                identities: chosen.identities(),
                inner: None,
                workload: Arc::clone(chosen.workload),
                service: service.cloned(),
            }),
            reason,
            destination: Destination {
                workload: Some(Arc::clone(chosen.workload)),
                service: service.cloned(),
            },
        }
    }

    /// Only services cross networks: `service` names what is asked for at the far end. `proven_by` is the service
    /// whose identities the far end must prove, the same one or its waypoint's.
    fn through_gateway(
        &mut self,
        chosen: &Chosen<'s>,
        service: Option<&'s Arc<Service>>,
        proven_by: Option<&'s Arc<Service>>,
        reason: Reason,
    ) -> Resolved {
        let to = |workload| Destination { workload: Some(Arc::clone(workload)), service: service.cloned() };
        match self.double(chosen.workload, service, proven_by) {
            Ok(upstream) => {
                // What was chosen stands for all workloads behind the gateway; who serves, only the far end can say.
                let destination = to(&upstream.workload);
                Resolved { route: Route::DoubleHbone(upstream), reason, destination }
            }
            Err(denied) => Resolved::deny(denied, to(chosen.workload)),
        }
    }

    fn double(
        &mut self,
        workload: &'s Arc<Workload>,
        service: Option<&'s Arc<Service>>,
        proven_by: Option<&'s Arc<Service>>,
    ) -> Result<Upstream, DenyReason> {
        let service = service.ok_or(DenyReason::NoServiceForTarget(self.original))?;
        let no_gateway = || DenyReason::NoGateway(workload.uid.clone());
        let reference = workload.network_gateway.as_ref().ok_or_else(no_gateway)?;
        let identities = proven_by.map(|service| service.subject_alt_names.clone()).unwrap_or_default();
        if identities.is_empty() {
            return Err(DenyReason::NoServiceIdentities(proven_by.unwrap_or(service).key()));
        }
        let gateway = resolve_reference(
            self.snapshot,
            self.source,
            reference,
            PortRule::Standard,
            self.original.ip(),
            self.rng,
        )
        .ok_or_else(|| DenyReason::UnknownGateway(reference.destination.clone()))?;
        let authority = Authority::Host { hostname: service.hostname.clone(), port: self.original.port() };
        Ok(Upstream {
            tcp_to: gateway.socket()?,
            authority: authority.clone(),
            identities: gateway.identities(),
            inner: Some(Inner { authority, identities }),
            workload: Arc::clone(gateway.workload),
            service: Some(Arc::clone(service)),
        })
    }
}

/// Chooses an endpoint of a service, with the address and port to reach it at.
pub(crate) fn choose<'s>(
    snapshot: &'s Snapshot,
    source: &Workload,
    service: &'s Arc<Service>,
    wanted: &Wanted<'_>,
    original: IpAddr,
    rng: &mut fastrand::Rng,
) -> Option<Chosen<'s>> {
    let workload = balance::choose(snapshot, source, wanted, rng)?;
    let port = wanted.port_of(workload)?;
    let address = address_of(workload, service.ip_families, original);
    Some(Chosen { workload, service: Some(service), address, port })
}

pub(crate) fn is_passthrough(service: &Service) -> bool {
    service.load_balancer.as_ref().is_some_and(|balancer| balancer.mode == LbMode::Passthrough)
}

/// One of several waypoints by weight; without weights, the one waypoint.
fn service_waypoint<'a>(service: &'a Service, rng: &mut fastrand::Rng) -> Option<&'a GatewayAddress> {
    let total: u64 = service.weighted_waypoints.iter().map(|(_, weight)| u64::from(*weight)).sum();
    if total == 0 {
        return service.waypoint.as_ref();
    }
    let mut left = rng.u64(0..total);
    let chosen = service.weighted_waypoints.iter().find(|(_, weight)| {
        let weight = u64::from(*weight);
        let here = left < weight;
        left = left.saturating_sub(weight);
        here
    });
    chosen.map(|(waypoint, _)| waypoint)
}

#[cfg(test)]
mod tests;
