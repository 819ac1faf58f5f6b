//! Whether a CONNECT is meant for this pod, and for which port of it. The address is always the one that the connection
//! arrived at: a peer can never choose another one.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use isthmus_model::workload::TunnelKind;
use isthmus_model::{Authority, GatewayAddress, Hostname, NetworkAddress, NetworkId, Service, Workload};

use crate::resolve::is_waypoint;
use crate::services::NamespaceScope;
use crate::snapshot::{Addressee, Snapshot};

/// Where an inbound stream is forwarded to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InboundTarget {
    /// The application: the address that the peer connected to, and the final port.
    pub addr: SocketAddr,
    /// The service that the authority names.
    pub service: Option<Arc<Service>>,
    /// How to announce the destination to an application with a tunnel protocol of its own (a sandwiched waypoint).
    pub tunnel: Option<AppTunnelTarget>,
}

/// What an application with a tunnel protocol of its own needs to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AppTunnelTarget {
    /// The tunnel protocol.
    pub protocol: TunnelKind,
    /// The destination of the CONNECT.
    pub destination: SocketAddr,
}

/// Why a CONNECT is refused before any policy is evaluated.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InboundError {
    /// The authority is another address than this pod's.
    #[error("ip mismatch: {local} != {authority}")]
    NotForUs {
        /// The address that the connection arrived at.
        local: IpAddr,
        /// The address of the CONNECT.
        authority: IpAddr,
    },
    /// No service of that name is visible to this pod.
    #[error("no service or workload for hostname: {0}")]
    UnknownHostname(Hostname),
    /// The service has no such port, or its target port in this pod is not known.
    #[error("requested service {hostname}:{port} found, but cannot resolve port")]
    UnknownPort {
        /// The service.
        hostname: Hostname,
        /// The service port.
        port: u16,
    },
    /// The port is one of the agent's own.
    #[error("attempted recursive call to ourselves")]
    Recursive,
    /// The application's tunnel needs an address, and the service has none.
    #[error("requested service {0} found, but has no IP addresses")]
    NoAddress(Hostname),
}

// === impl InboundError ===

impl InboundError {
    /// Whether the peer sent the CONNECT to the wrong pod. Otherwise this pod is meant and has no such target (yet), so
    /// that another endpoint may have it.
    #[must_use]
    pub fn is_peers_fault(&self) -> bool {
        match self {
            Self::NotForUs { .. } => true,
            Self::UnknownHostname(_) | Self::UnknownPort { .. } | Self::Recursive | Self::NoAddress(_) => {
                false
            }
        }
    }
}

/// Finds the application's address for a CONNECT that arrived at `local_addr` of the pod `local`.
///
/// # Errors
/// When the CONNECT is not meant for this pod, or its port cannot be determined.
pub fn inbound_target(
    snapshot: &Snapshot,
    local: &Workload,
    local_addr: SocketAddr,
    authority: &Authority,
    own_network: &NetworkId,
) -> Result<InboundTarget, InboundError> {
    let here = local_addr.ip().to_canonical();
    let (service, port) = match authority {
        Authority::Ip(address) => {
            let asked = address.ip().to_canonical();
            if !is_for_us(snapshot, local, here, SocketAddr::new(asked, address.port()), own_network) {
                return Err(InboundError::NotForUs { local: here, authority: asked });
            }
            (None, address.port())
        }
        Authority::Host { hostname, port } => {
            let (service, target) = by_hostname(snapshot, local, hostname, *port)?;
            (Some(service), target)
        }
    };
    if snapshot.options.ports.loops_back(port) {
        return Err(InboundError::Recursive);
    }
    let Some(tunnel) = local.application_tunnel else {
        return Ok(InboundTarget {
            addr: SocketAddr::new(here, port),
            service: service.cloned(),
            tunnel: None,
        });
    };
    let destination = match (authority, service) {
        (Authority::Host { port, .. }, Some(service)) => SocketAddr::new(vip(service, own_network)?, *port),
        (Authority::Ip(address), _) => SocketAddr::new(address.ip().to_canonical(), address.port()),
        (Authority::Host { hostname, .. }, None) => {
            return Err(InboundError::UnknownHostname(hostname.clone()));
        }
    };
    Ok(InboundTarget {
        addr: SocketAddr::new(here, tunnel.port.unwrap_or(port)),
        service: service.cloned(),
        tunnel: Some(AppTunnelTarget { protocol: tunnel.protocol, destination }),
    })
}

/// Whether a CONNECT to the address `asked` may arrive here: it is the pod's own, the application has a tunnel protocol of
/// its own and takes any destination, or the pod is the waypoint of the service or workload at that address.
fn is_for_us(
    snapshot: &Snapshot,
    local: &Workload,
    here: IpAddr,
    asked: SocketAddr,
    own_network: &NetworkId,
) -> bool {
    if asked.ip() == here || local.application_tunnel.is_some() {
        return true;
    }
    let port = asked.port();
    let asked = NetworkAddress { network: own_network.clone(), address: asked.ip() };
    let ours = |waypoint: &GatewayAddress| is_waypoint(snapshot, waypoint, &local.uid);
    let workload = snapshot.workload_by_addr(&asked);
    let service = match snapshot.addressee(&asked, port, None) {
        Some(Addressee::Service(service)) => Some(service),
        Some(Addressee::Workload(_)) | None => None,
    };
    service.is_some_and(|service| {
        service.waypoint.iter().any(ours)
            || service.weighted_waypoints.iter().any(|(waypoint, _)| ours(waypoint))
    }) || workload.is_some_and(|workload| workload.waypoint.iter().any(ours))
}

fn by_hostname<'s>(
    snapshot: &'s Snapshot,
    local: &Workload,
    hostname: &Hostname,
    port: u16,
) -> Result<(&'s Arc<Service>, u16), InboundError> {
    let scope = NamespaceScope { client: Some(&local.namespace), preferred: None };
    let named = snapshot.services.by_hostname(hostname.as_str());
    // A hostname may exist in several namespaces; a service of which this pod is an endpoint is more likely meant, and
    // before that, one with this port.
    let serves = |service: &&Arc<Service>| local.services.contains_key(&service.key());
    let with_port = |service: &&Arc<Service>| target_port(service, local, port).is_some();
    let service = scope
        .best(named.iter().filter(serves).filter(with_port))
        .or_else(|| scope.best(named.iter().filter(with_port)))
        .or_else(|| scope.best(named.iter()))
        .ok_or_else(|| InboundError::UnknownHostname(hostname.clone()))?;
    let target = target_port(service, local, port)
        .ok_or_else(|| InboundError::UnknownPort { hostname: hostname.clone(), port })?;
    Ok((service, target))
}

fn target_port(service: &Service, local: &Workload, port: u16) -> Option<u16> {
    let own = local.services.get(&service.key()).and_then(|ports| ports.get(&port));
    let known = |port: &&u16| **port != 0;
    own.filter(known).or_else(|| service.ports.get(&port).filter(known)).copied()
}

/// A virtual address of the service: one of our own network rather than another, IPv4 rather than IPv6.
fn vip(service: &Service, own_network: &NetworkId) -> Result<IpAddr, InboundError> {
    let rank = |vip: &&NetworkAddress| (vip.network != *own_network, vip.address.is_ipv6());
    let best = service.vips.iter().min_by_key(rank);
    best.map(|vip| vip.address).ok_or_else(|| InboundError::NoAddress(service.hostname.clone()))
}

/// The service for logs and metrics of an inbound connection to `port`: the one that the client claims to have addressed
/// if this pod is an endpoint of it, otherwise the first of the pod's services with that port. Claims are not verified, so
/// it must not be used for a decision.
#[must_use]
pub fn service_label<'s>(
    snapshot: &'s Snapshot,
    local: &Workload,
    claimed: Option<&str>,
    port: u16,
) -> Option<&'s Arc<Service>> {
    let mut served = local.services.iter().filter_map(|(key, ports)| Some((snapshot.service(key)?, ports)));
    let named = claimed.map(Hostname::from).and_then(|claimed| {
        let (service, _) = served.clone().find(|(service, _)| service.hostname == claimed)?;
        Some(service)
    });
    named.or_else(|| {
        let serves = |(service, ports): &(&Arc<Service>, &isthmus_model::workload::PortMap)| {
            ports.values().chain(service.ports.values()).any(|target| *target == port)
        };
        served.find(serves).map(|(service, _)| service)
    })
}

#[cfg(test)]
mod tests;
