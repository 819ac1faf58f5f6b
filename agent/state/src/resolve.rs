//! From (source workload, original destination) to a route. The order of the questions is the contract with the other
//! implementations of the mesh, so it is spelled out in [`resolve`] and nowhere else.

mod choose;
mod reference;

use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_model::{
    Authority, GatewayAddress, HBONE_PORT, NetworkAddress, NetworkId, Protocol, Service, Workload,
};

use crate::balance::NoPick;
use crate::hints::{Hints, NoHints, Role};
use crate::route::{DenyReason, Destination, Inner, Reason, Resolved, Route, Upstream};
use crate::snapshot::Snapshot;
use crate::target::{PortRule, Wanted};

pub(crate) use choose::{Chooser, Chosen, is_passthrough};
pub(crate) use reference::is_waypoint;

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
    resolve_with(snapshot, source, original, own_network, &NoHints, rng)
}

/// [`resolve`] for one who knows more than the mesh says: whom to avoid, and what names mean.
pub fn resolve_with(
    snapshot: &Snapshot,
    source: &Workload,
    original: SocketAddr,
    own_network: &NetworkId,
    hints: &dyn Hints,
    rng: &mut fastrand::Rng,
) -> Resolved {
    let original = SocketAddr::new(original.ip().to_canonical(), original.port());
    if original.ip().is_loopback() && snapshot.options.ports.loops_back(original.port()) {
        return Resolved::deny(DenyReason::Recursive, Destination::default());
    }
    let chooser = Chooser { snapshot, source, hints, rng };
    Resolver { snapshot, source, original, chooser }.run(own_network)
}

struct Resolver<'s, 'r> {
    snapshot: &'s Snapshot,
    source: &'s Workload,
    original: SocketAddr,
    chooser: Chooser<'s, 'r>,
}

/// What is at the original destination.
enum Found<'s> {
    Chosen(Chosen<'s>),
    /// A service none of whose endpoints can be chosen.
    NoneOf(&'s Arc<Service>, NoPick),
    /// A workload that is to be avoided.
    Avoided(&'s Arc<Workload>),
    /// A service that asks for no load balancing.
    Passthrough,
    Nothing,
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
            && let Some(waypoint) = service_waypoint(service, self.chooser.rng)
        {
            return self.through_waypoint(waypoint, Some(service), Reason::ServiceWaypoint);
        }
        match self.upstream() {
            Found::Chosen(chosen) => self.towards(&chosen, addressed.is_some()),
            Found::NoneOf(service, why) => Resolved::deny(
                self.nobody(why, DenyReason::NoHealthyUpstream(self.original)),
                Destination { workload: None, service: Some(Arc::clone(service)) },
            ),
            Found::Avoided(workload) => Resolved::deny(
                DenyReason::AllAvoided(self.original),
                Destination { workload: Some(Arc::clone(workload)), service: None },
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
            return match self.chooser.endpoint(service, &wanted, self.original.ip(), Role::Endpoint) {
                Ok(chosen) => Found::Chosen(chosen),
                Err(why) => Found::NoneOf(service, why),
            };
        }
        let Some(workload) = snapshot.workload_by_addr(&there) else { return Found::Nothing };
        let (address, port) = (self.original.ip(), self.original.port());
        let only = self.chooser.only(workload, Some(address), port, Role::Endpoint);
        only.map_or(Found::Avoided(workload), Found::Chosen)
    }

    /// `otherwise`, unless everybody is only to be avoided for now.
    fn nobody(&self, why: NoPick, otherwise: DenyReason) -> DenyReason {
        match why {
            NoPick::Nobody => otherwise,
            NoPick::Avoided => DenyReason::AllAvoided(self.original),
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
            picks: vec![chosen.pick.clone()],
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
        let found = self.chooser.reference(waypoint, Role::Waypoint, self.original.ip());
        let chosen = match found {
            Ok(chosen) => chosen,
            Err(why) => {
                let unknown = DenyReason::UnknownWaypoint(waypoint.destination.clone());
                return Resolved::deny(self.nobody(why, unknown), asked());
            }
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
                picks: vec![chosen.pick.clone()],
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
        match self.double(chosen, service, proven_by) {
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
        chosen: &Chosen<'s>,
        service: Option<&'s Arc<Service>>,
        proven_by: Option<&'s Arc<Service>>,
    ) -> Result<Upstream, DenyReason> {
        let service = service.ok_or(DenyReason::NoServiceForTarget(self.original))?;
        let no_gateway = || DenyReason::NoGateway(chosen.workload.uid.clone());
        let reference = chosen.workload.network_gateway.as_ref().ok_or_else(no_gateway)?;
        let identities = proven_by.map(|service| service.subject_alt_names.clone()).unwrap_or_default();
        if identities.is_empty() {
            return Err(DenyReason::NoServiceIdentities(proven_by.unwrap_or(service).key()));
        }
        let found = self.chooser.reference(reference, Role::Gateway, self.original.ip());
        let unknown = || DenyReason::UnknownGateway(reference.destination.clone());
        let gateway = found.map_err(|why| self.nobody(why, unknown()))?;
        let authority = Authority::Host { hostname: service.hostname.clone(), port: self.original.port() };
        Ok(Upstream {
            tcp_to: gateway.socket()?,
            authority: authority.clone(),
            identities: gateway.identities(),
            inner: Some(Inner { authority, identities }),
            workload: Arc::clone(gateway.workload),
            service: Some(Arc::clone(service)),
            picks: vec![chosen.pick.clone(), gateway.pick.clone()],
        })
    }
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
