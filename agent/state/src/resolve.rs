//! From (source workload, original destination) to a [`Decision`]. The order of the steps is a contract with the other
//! implementations of the mesh, so it is spelled out in [`resolve`] and nowhere else.

mod choose;
mod reference;

use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_model::{Authority, GatewayAddress, NetworkAddress, NetworkId, Protocol, Service, Workload};

use crate::avoid::Avoid;
use crate::balance::NoEndpoint;
use crate::route::{
    AcceptedIdentities, Decision, DenyReason, Destination, InnerTunnelTarget, Pending, PendingCarrier,
    Reason, Resolved, Role, Route,
};
use crate::snapshot::{Addressee, Snapshot};
use crate::target::{PortRule, ServicePort};

pub(crate) use choose::{Chooser, Chosen, is_passthrough};
pub(crate) use reference::is_waypoint;

/// Decides where a connection of `source` to `original` goes.
///
/// In this order: the agent's own ports are refused; a service with a waypoint goes there; an address of a service
/// goes to one of its endpoints, an address of a workload to that workload, an address in a service's range, at one of
/// its ports, to one of its endpoints; a workload on another network is reached
/// through its gateway; a workload with a waypoint, addressed directly, goes there; any other goes directly. A
/// destination of which nothing is known passes through. The outcome depends on nothing but the arguments.
pub fn resolve(
    snapshot: &Snapshot,
    source: &Workload,
    original: SocketAddr,
    own_network: &NetworkId,
    rng: &mut fastrand::Rng,
) -> Resolved {
    resolve_avoiding(snapshot, source, original, own_network, Avoid::default(), rng)
}

/// [`resolve`], without choosing what is to be avoided.
pub fn resolve_avoiding(
    snapshot: &Snapshot,
    source: &Workload,
    original: SocketAddr,
    own_network: &NetworkId,
    avoid: Avoid<'_>,
    rng: &mut fastrand::Rng,
) -> Resolved {
    let original = SocketAddr::new(original.ip().to_canonical(), original.port());
    if original.ip().is_loopback() && snapshot.options.ports.loops_back(original.port()) {
        return Resolved::deny(DenyReason::Recursive, Destination::default());
    }
    let chooser = Chooser { snapshot, source, avoid, rng };
    Resolver { snapshot, source, original, chooser }.run(own_network)
}

struct Resolver<'s, 'r> {
    snapshot: &'s Snapshot,
    source: &'s Workload,
    original: SocketAddr,
    chooser: Chooser<'s, 'r>,
}

/// What the original destination leads to.
enum Lookup<'s> {
    Chosen(Chosen<'s>),
    /// A service without an endpoint that can be chosen.
    NoEndpoint(&'s Arc<Service>, NoEndpoint),
    /// A workload that is to be avoided.
    Avoided(&'s Arc<Workload>),
    /// A service that asks for no load balancing.
    Passthrough,
    /// Neither a service nor a workload has the address.
    Unknown,
}

// === impl Resolver ===

impl<'s> Resolver<'s, '_> {
    fn run(mut self, own_network: &NetworkId) -> Resolved {
        let snapshot = self.snapshot;
        let here = NetworkAddress { network: own_network.clone(), address: self.original.ip() };
        // A workload's address never counts as a service's here, though it does below: an endpoint may have been given
        // the address of its service, and a connection to it must not take the detour by the service's waypoint.
        let addressed = match snapshot.workload_by_addr(&here) {
            Some(_) => None,
            None => match self.addressee(&here) {
                Some(Addressee::Service(service)) => Some(service),
                Some(Addressee::Workload(_)) | None => None,
            },
        };
        if let Some(service) = addressed
            && let Some(waypoint) = service_waypoint(service, self.chooser.rng)
        {
            return self.through_waypoint(waypoint, Some(service), Reason::ServiceWaypoint);
        }
        match self.look_up() {
            Lookup::Chosen(chosen) => self.towards(&chosen, addressed.is_some()),
            Lookup::NoEndpoint(service, why) => Resolved::deny(
                self.deny_reason(why, DenyReason::NoHealthyUpstream(self.original)),
                Destination { workload: None, service: Some(Arc::clone(service)) },
            ),
            Lookup::Avoided(workload) => Resolved::deny(
                DenyReason::AllAvoided(self.original),
                Destination { workload: Some(Arc::clone(workload)), service: None },
            ),
            Lookup::Passthrough => self.passthrough(Reason::PassthroughService),
            Lookup::Unknown => self.passthrough(Reason::Unknown),
        }
    }

    /// The service at the original destination, or else the workload there.
    fn look_up(&mut self) -> Lookup<'s> {
        let there = NetworkAddress { network: self.source.network.clone(), address: self.original.ip() };
        let (address, port) = (self.original.ip(), self.original.port());
        match self.addressee(&there) {
            Some(Addressee::Service(service)) if is_passthrough(service) => Lookup::Passthrough,
            Some(Addressee::Service(service)) => {
                let service_port = ServicePort::new(service, port, PortRule::Standard);
                match self.chooser.endpoint(service, &service_port, address, Role::Endpoint) {
                    Ok(chosen) => Lookup::Chosen(chosen),
                    Err(why) => Lookup::NoEndpoint(service, why),
                }
            }
            Some(Addressee::Workload(workload)) => {
                let only = self.chooser.only(workload, Some(address), port, Role::Endpoint);
                only.map_or(Lookup::Avoided(workload), Lookup::Chosen)
            }
            None => Lookup::Unknown,
        }
    }

    fn addressee(&self, address: &NetworkAddress) -> Option<Addressee<'s>> {
        self.snapshot.addressee(address, self.original.port(), Some(&self.source.namespace))
    }

    /// `otherwise`, unless there are endpoints and all of them are to be avoided.
    fn deny_reason(&self, why: NoEndpoint, otherwise: DenyReason) -> DenyReason {
        match why {
            NoEndpoint::NoneQualify => otherwise,
            NoEndpoint::AllAvoided => DenyReason::AllAvoided(self.original),
        }
    }

    fn passthrough(&self, reason: Reason) -> Resolved {
        let decision = Decision::Connect(Route::Passthrough { to: self.original });
        Resolved { decision, reason, destination: Destination::default() }
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
        direct(chosen)
    }

    /// A waypoint that is set is never bypassed. `service` is the one that was addressed, if one was.
    fn through_waypoint(
        &mut self,
        waypoint: &GatewayAddress,
        service: Option<&'s Arc<Service>>,
        reason: Reason,
    ) -> Resolved {
        let addressed = || Destination { workload: None, service: service.cloned() };
        let found = self.chooser.reference(waypoint, Role::Waypoint, self.original.ip());
        let chosen = match found {
            Ok(chosen) => chosen,
            Err(why) => {
                let unknown = DenyReason::UnknownWaypoint(waypoint.destination.clone());
                return Resolved::deny(self.deny_reason(why, unknown), addressed());
            }
        };
        if chosen.workload.network != self.source.network {
            let proven_by = chosen.service;
            return self.through_gateway(&chosen, service, proven_by, reason);
        }
        let authority = Authority::Ip(self.original);
        match connect(&chosen, PendingCarrier::Waypoint { identities: chosen.identities(), authority }) {
            Ok(decision) => {
                let destination =
                    Destination { workload: Some(Arc::clone(chosen.workload)), service: service.cloned() };
                Resolved { decision, reason, destination }
            }
            Err(denied) => Resolved::deny(denied, addressed()),
        }
    }

    /// Only services cross networks: `service` is what the CONNECTs ask for. `proven_by` is the service whose identities
    /// the peer of the inner tunnel must prove: the same one, or its waypoint's.
    fn through_gateway(
        &mut self,
        chosen: &Chosen<'s>,
        service: Option<&'s Arc<Service>>,
        proven_by: Option<&'s Arc<Service>>,
        reason: Reason,
    ) -> Resolved {
        let to = |workload| Destination { workload: Some(Arc::clone(workload)), service: service.cloned() };
        match self.double(chosen, service, proven_by) {
            // What was chosen stands for all endpoints behind the gateway; only the inner peer can say which one serves.
            Ok((decision, gateway)) => Resolved { decision, reason, destination: to(gateway) },
            Err(denied) => Resolved::deny(denied, to(chosen.workload)),
        }
    }

    fn double(
        &mut self,
        chosen: &Chosen<'s>,
        service: Option<&'s Arc<Service>>,
        proven_by: Option<&'s Arc<Service>>,
    ) -> Result<(Decision, &'s Arc<Workload>), DenyReason> {
        let service = service.ok_or(DenyReason::NoServiceForTarget(self.original))?;
        let no_gateway = || DenyReason::NoGateway(chosen.workload.uid.clone());
        let reference = chosen.workload.network_gateway.as_ref().ok_or_else(no_gateway)?;
        let names = proven_by.map(|service| service.subject_alt_names.clone()).unwrap_or_default();
        let identities = AcceptedIdentities::new(names)
            .ok_or_else(|| DenyReason::NoServiceIdentities(proven_by.unwrap_or(service).key()))?;
        let found = self.chooser.reference(reference, Role::Gateway, self.original.ip());
        let unknown = || DenyReason::UnknownGateway(reference.destination.clone());
        let gateway = found.map_err(|why| self.deny_reason(why, unknown()))?;
        let authority = Authority::Host { hostname: service.hostname.clone(), port: self.original.port() };
        let carrier = PendingCarrier::Gateway {
            identities: gateway.identities(),
            inner: InnerTunnelTarget { authority, identities },
            remote: chosen.pick.clone(),
        };
        Ok((connect(&gateway, carrier)?, gateway.workload))
    }
}

fn direct(chosen: &Chosen<'_>) -> Resolved {
    let destination = chosen.destination();
    let carrier = match chosen.workload.protocol {
        Protocol::Hbone => PendingCarrier::Hbone(chosen.identities()),
        Protocol::Tcp => PendingCarrier::Tcp,
    };
    let reason = if chosen.service.is_some() { Reason::Service } else { Reason::Workload };
    match connect(chosen, carrier) {
        Ok(decision) => Resolved { decision, reason, destination },
        Err(denied) => Resolved::deny(denied, destination),
    }
}

/// The route to a chosen workload, or what is missing for it.
fn connect(chosen: &Chosen<'_>, carrier: PendingCarrier) -> Result<Decision, DenyReason> {
    let pending = Pending { pick: chosen.pick.clone(), port: chosen.port, carrier };
    match chosen.address {
        Some(address) => Ok(Decision::Connect(pending.at(address))),
        None if chosen.is_known_by_hostname() => Ok(Decision::NeedsAddress(Box::new(pending))),
        None => Err(DenyReason::NoAddress(chosen.workload.uid.clone())),
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
