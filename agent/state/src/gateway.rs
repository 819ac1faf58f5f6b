//! Where an east-west gateway sends what arrives for a service of its network. It is the last word on what the outside
//! may reach: only global services, by their exact name, and only endpoints of the gateway's own network, so that no
//! two gateways can send a connection round in circles.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use isthmus_model::{
    GatewayDestination, Hostname, NamespacedHostname, NetworkId, Protocol, Service, Workload,
};

use crate::balance;
use crate::resolve::resolve_reference;
use crate::services::Asker;
use crate::snapshot::Snapshot;
use crate::target::{HBONE_PORT, PortRule, Wanted};

/// Where the bytes of one outer stream go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GatewayTarget {
    /// HBONE port of an endpoint, or of the service's waypoint.
    pub addr: SocketAddr,
    /// The workload there.
    pub workload: Arc<Workload>,
    /// The service that was asked for.
    pub service: Arc<Service>,
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
    /// None of its endpoints in this network takes HBONE.
    #[error("no healthy upstream in this network: {hostname}:{port}")]
    NoHealthyUpstream {
        /// The service.
        hostname: Hostname,
        /// What was asked for.
        port: u16,
    },
}

/// Chooses where a stream for `hostname:port` goes.
///
/// # Errors
/// When the service may not be reached from outside, or cannot be reached in this network.
pub fn gateway_target(
    snapshot: &Snapshot,
    hostname: &Hostname,
    port: u16,
    own_network: &NetworkId,
    is_global: impl Fn(&NamespacedHostname) -> bool,
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
    let target = |addr, workload: &Arc<Workload>| GatewayTarget {
        addr,
        workload: Arc::clone(workload),
        service: Arc::clone(service),
    };
    if let Some(reference) = &service.waypoint {
        let (addr, workload) = waypoint(snapshot, reference, own_network, rng)
            .ok_or_else(|| GatewayRefusal::UnknownWaypoint(reference.destination.clone()))?;
        return Ok(target(addr, workload));
    }
    let wanted = Wanted::new(service, port, PortRule::Standard);
    let takes_it = |workload: &Workload| is_here(workload, own_network) && wanted.port_of(workload).is_some();
    snapshot
        .services
        .endpoints(&wanted.key)
        .and_then(|set| balance::anyone(set, balance::among(service), takes_it, rng))
        .and_then(|workload| Some(target(SocketAddr::new(address(service, workload)?, HBONE_PORT), workload)))
        .ok_or_else(|| GatewayRefusal::NoHealthyUpstream { hostname: hostname.clone(), port })
}

/// What stands for endpoints of another network is never a target.
fn is_here(workload: &Workload, own_network: &NetworkId) -> bool {
    workload.network == *own_network && workload.protocol == Protocol::Hbone && !workload.addresses.is_empty()
}

fn address(service: &Service, workload: &Workload) -> Option<IpAddr> {
    let allowed = |address: &&IpAddr| service.ip_families.is_none_or(|families| families.accepts(**address));
    let mut allowed = workload.addresses.iter().filter(allowed);
    allowed.clone().find(|address| address.is_ipv4()).or_else(|| allowed.next()).copied()
}

fn waypoint<'s>(
    snapshot: &'s Snapshot,
    reference: &isthmus_model::GatewayAddress,
    own_network: &NetworkId,
    rng: &mut fastrand::Rng,
) -> Option<(SocketAddr, &'s Arc<Workload>)> {
    // Nobody in particular asks, from within this network; a name leaves the family open, and IPv4 is tried first.
    let asker = Workload { network: own_network.clone(), ..Workload::default() };
    let any = IpAddr::from([0, 0, 0, 0]);
    let chosen = resolve_reference(snapshot, &asker, reference, PortRule::Waypoint, any, rng)?;
    let here = is_here(chosen.workload, own_network);
    here.then(|| Some((SocketAddr::new(chosen.address?, chosen.port), chosen.workload)))?
}

#[cfg(test)]
mod tests;
