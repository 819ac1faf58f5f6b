//! Where an east-west gateway forwards a stream for a service of its network. It is the last check on what other networks
//! may reach: only global services, by their exact name, and only endpoints of the gateway's own network, so that no
//! two gateways can send a connection in circles.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use isthmus_model::{
    GatewayDestination, HBONE_PORT, Hostname, NamespacedHostname, NetworkId, Service, Workload,
};

use crate::avoid::{Avoid, Candidate};
use crate::balance::{self, EndpointQuery, NoEndpoint, QueryOrigin, is_gateway_endpoint};
use crate::resolve::Chooser;
use crate::route::{Pick, Role};
use crate::services::NamespaceScope;
use crate::snapshot::Snapshot;
use crate::target::{PortRule, ServicePort};

/// Where one outer stream is forwarded to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GatewayTarget {
    /// HBONE port of an endpoint, or of the service's waypoint.
    pub addr: SocketAddr,
    /// The service that the CONNECT asked for.
    pub service: Arc<Service>,
    /// The workload at `addr`.
    pub pick: Pick,
}

/// Why the gateway does not forward. For the log: the peer only sees a 503, whatever the reason.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GatewayRefusal {
    /// No service has this name.
    #[error("unknown service: {0}")]
    UnknownService(Hostname),
    /// The service is not known to be global.
    #[error("service is not global: {0}")]
    NotGlobal(Hostname),
    /// The service has no such port.
    #[error("service {hostname} has no port {port}")]
    UnknownPort {
        /// The service.
        hostname: Hostname,
        /// The port of the CONNECT.
        port: u16,
    },
    /// The service has a waypoint that cannot be found in this network; a waypoint is never bypassed.
    #[error("unknown waypoint: {0}")]
    UnknownWaypoint(GatewayDestination),
    /// Every endpoint that qualifies is to be avoided for now.
    #[error(
        "no healthy upstream in this network: {hostname}:{port}: every endpoint that qualifies is ejected or was tried"
    )]
    AllAvoided {
        /// The service.
        hostname: Hostname,
        /// The port of the CONNECT.
        port: u16,
    },
    /// The service has no healthy HBONE endpoint in this network.
    #[error("no healthy upstream in this network: {hostname}:{port}")]
    NoHealthyUpstream {
        /// The service.
        hostname: Hostname,
        /// The port of the CONNECT.
        port: u16,
    },
}

/// Chooses the endpoint, or the waypoint, for a stream to `hostname:port`.
///
/// # Errors
/// When the service may not be reached from outside, or cannot be reached in this network.
pub fn gateway_target(
    snapshot: &Snapshot,
    hostname: &Hostname,
    port: u16,
    own_network: &NetworkId,
    is_global: impl Fn(&NamespacedHostname) -> bool,
    avoid: Avoid<'_>,
    rng: &mut fastrand::Rng,
) -> Result<GatewayTarget, GatewayRefusal> {
    let named = snapshot.services.by_hostname(hostname.as_str());
    if named.is_empty() {
        return Err(GatewayRefusal::UnknownService(hostname.clone()));
    }
    let global = || named.iter().filter(|service| is_global(&service.key()));
    let scope = NamespaceScope::default();
    let service = scope
        .best(global().filter(|service| service.ports.contains_key(&port)))
        .or_else(|| scope.best(global()))
        .ok_or_else(|| GatewayRefusal::NotGlobal(hostname.clone()))?;
    if !service.ports.contains_key(&port) {
        return Err(GatewayRefusal::UnknownPort { hostname: hostname.clone(), port });
    }
    let target = |addr, pick: Pick| GatewayTarget { addr, service: Arc::clone(service), pick };
    let avoided = || GatewayRefusal::AllAvoided { hostname: hostname.clone(), port };
    if let Some(reference) = &service.waypoint {
        let unknown = || GatewayRefusal::UnknownWaypoint(reference.destination.clone());
        let (addr, pick) = waypoint(snapshot, reference, own_network, avoid, rng)
            .map_err(|why| if why == NoEndpoint::AllAvoided { avoided() } else { unknown() })?;
        return Ok(target(addr, pick));
    }
    let service_port = ServicePort::new(service, port, PortRule::Standard);
    let query = EndpointQuery { origin: QueryOrigin::Gateway(own_network), service_port: &service_port };
    let avoids = |workload: &Workload| {
        let candidate = Candidate { role: Role::Endpoint, service: Some(&service_port.key), port, workload };
        avoid.contains(&candidate, own_network)
    };
    let none = || GatewayRefusal::NoHealthyUpstream { hostname: hostname.clone(), port };
    let set = snapshot.services.endpoints(&service_port.key).ok_or_else(none)?;
    let picked = balance::choose(set, &query, avoids, rng)
        .map_err(|why| if why == NoEndpoint::AllAvoided { avoided() } else { none() })?;
    let address = address(service, picked.workload).ok_or_else(none)?;
    let pick = Pick {
        role: Role::Endpoint,
        service: Some(service_port.key.clone()),
        port,
        workload: Arc::clone(picked.workload),
        of: picked.of,
        host: None,
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
    avoid: Avoid<'_>,
    rng: &mut fastrand::Rng,
) -> Result<(SocketAddr, Pick), NoEndpoint> {
    // The client is of another network, so the choice is made as for a workload of this one without a locality. A
    // reference by name leaves the family open; IPv4 is preferred.
    let source = Workload { network: own_network.clone(), ..Workload::default() };
    let any = IpAddr::from([0, 0, 0, 0]);
    let mut chooser = Chooser { snapshot, source: &source, avoid, rng };
    let chosen = chooser.reference(reference, Role::Waypoint, any)?;
    let address = chosen.address.filter(|_| is_gateway_endpoint(chosen.workload, own_network));
    let address = address.ok_or(NoEndpoint::NoneQualify)?;
    Ok((SocketAddr::new(address, chosen.port), chosen.pick))
}

#[cfg(test)]
mod tests;
