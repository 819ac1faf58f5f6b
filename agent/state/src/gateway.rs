//! Where an east-west gateway sends what arrives for a service of its network. It is the last word on what the outside
//! may reach: only global services, by their exact name, and only endpoints of the gateway's own network, so that no
//! two gateways can send a connection round in circles.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use isthmus_model::{
    GatewayDestination, HBONE_PORT, Hostname, NamespacedHostname, NetworkId, Service, Workload,
};

use crate::balance::{self, Ask, NoPick, Origin, is_here};
use crate::hints::{Candidate, Hints, Role};
use crate::resolve::Chooser;
use crate::route::Pick;
use crate::services::Asker;
use crate::snapshot::Snapshot;
use crate::target::{PortRule, Wanted};

/// Where the bytes of one outer stream go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GatewayTarget {
    /// HBONE port of an endpoint, or of the service's waypoint.
    pub addr: SocketAddr,
    /// The workload there.
    pub workload: Arc<Workload>,
    /// The service that was asked for.
    pub service: Arc<Service>,
    /// What it was chosen for, and from how many.
    pub pick: Pick,
}

/// Why the gateway does not forward. The peer is told no more than that it was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GatewayRefusal {
    /// No service has this name.
    #[error("unknown service: {0}")]
    UnknownService(Hostname),
    /// It is not known to be global.
    #[error("service is not global: {0}")]
    NotGlobal(Hostname),
    /// It has no such port.
    #[error("service {hostname} has no port {port}")]
    UnknownPort {
        /// The service.
        hostname: Hostname,
        /// What was asked for.
        port: u16,
    },
    /// It has a waypoint that cannot be found in this network; a waypoint is never bypassed.
    #[error("unknown waypoint: {0}")]
    UnknownWaypoint(GatewayDestination),
    /// Everybody who could be chosen is to be avoided for now.
    #[error("no healthy upstream in this network: {hostname}:{port}: all that qualify refused lately")]
    AllAvoided {
        /// The service.
        hostname: Hostname,
        /// What was asked for.
        port: u16,
    },
    /// None of its endpoints in this network takes HBONE.
    #[error("no healthy upstream in this network: {hostname}:{port}")]
    NoHealthyUpstream {
        /// The service.
        hostname: Hostname,
        /// What was asked for.
        port: u16,
    },
}

/// Chooses where a stream for `hostname:port` goes; never to one that the hints say to avoid.
///
/// # Errors
/// When the service may not be reached from outside, or cannot be reached in this network.
pub fn gateway_target(
    snapshot: &Snapshot,
    hostname: &Hostname,
    port: u16,
    own_network: &NetworkId,
    is_global: impl Fn(&NamespacedHostname) -> bool,
    hints: &dyn Hints,
    rng: &mut fastrand::Rng,
) -> Result<GatewayTarget, GatewayRefusal> {
    let named = snapshot.services.named(hostname.as_str());
    if named.is_empty() {
        return Err(GatewayRefusal::UnknownService(hostname.clone()));
    }
    let global = named.iter().filter(|service| is_global(&service.key()));
    let service = Asker::default().best(global).ok_or_else(|| GatewayRefusal::NotGlobal(hostname.clone()))?;
    if !service.ports.contains_key(&port) {
        return Err(GatewayRefusal::UnknownPort { hostname: hostname.clone(), port });
    }
    let target = |addr, pick: Pick| GatewayTarget {
        addr,
        workload: Arc::clone(&pick.workload),
        service: Arc::clone(service),
        pick,
    };
    let avoided = || GatewayRefusal::AllAvoided { hostname: hostname.clone(), port };
    if let Some(reference) = &service.waypoint {
        let unknown = || GatewayRefusal::UnknownWaypoint(reference.destination.clone());
        let (addr, pick) = waypoint(snapshot, reference, own_network, hints, rng)
            .map_err(|why| if why == NoPick::Avoided { avoided() } else { unknown() })?;
        return Ok(target(addr, pick));
    }
    let wanted = Wanted::new(service, port, PortRule::Standard);
    let ask = Ask { origin: Origin::Gateway(own_network), wanted: &wanted };
    let avoid = |workload: &Workload| {
        hints.avoids(&Candidate { role: Role::Endpoint, service: Some(&wanted.key), port, workload })
    };
    let nobody = || GatewayRefusal::NoHealthyUpstream { hostname: hostname.clone(), port };
    let picked = balance::choose(snapshot, &ask, avoid, rng)
        .map_err(|why| if why == NoPick::Avoided { avoided() } else { nobody() })?;
    let address = address(service, picked.workload).ok_or_else(nobody)?;
    let pick = Pick {
        role: Role::Endpoint,
        service: Some(wanted.key.clone()),
        port,
        workload: Arc::clone(picked.workload),
        of: picked.of,
    };
    Ok(target(SocketAddr::new(address, HBONE_PORT), pick))
}

fn address(service: &Service, workload: &Workload) -> Option<IpAddr> {
    let allowed = |address: &&IpAddr| service.ip_families.is_none_or(|families| families.accepts(**address));
    let mut allowed = workload.addresses.iter().filter(allowed);
    allowed.clone().find(|address| address.is_ipv4()).or_else(|| allowed.next()).copied()
}

fn waypoint(
    snapshot: &Snapshot,
    reference: &isthmus_model::GatewayAddress,
    own_network: &NetworkId,
    hints: &dyn Hints,
    rng: &mut fastrand::Rng,
) -> Result<(SocketAddr, Pick), NoPick> {
    // Nobody in particular asks, from within this network; a name leaves the family open, and IPv4 is tried first.
    let asker = Workload { network: own_network.clone(), ..Workload::default() };
    let any = IpAddr::from([0, 0, 0, 0]);
    let mut chooser = Chooser { snapshot, source: &asker, hints, rng };
    let chosen = chooser.reference(reference, Role::Waypoint, any)?;
    let address = chosen.address.filter(|_| is_here(chosen.workload, own_network)).ok_or(NoPick::Nobody)?;
    Ok((SocketAddr::new(address, chosen.port), chosen.pick))
}

#[cfg(test)]
mod tests;
