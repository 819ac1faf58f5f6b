//! The door of the model: what every workload, service and policy must be, whether the control plane or a local file
//! describes it. Addresses and ranges leave it in one form, absent ports have their defaults, and what could never work is
//! refused. Names need no door: their types normalise them ([`crate::name`]).
//!
//! It knows nothing of wires and files.

use std::net::Ipv6Addr;

use ipnet::{IpNet, Ipv4Net};

use crate::addr::{GatewayAddress, GatewayDestination, NetworkAddress};
use crate::policy::{Match, Policy, Scope};
use crate::ports::HBONE_PORT;
use crate::service::Service;
use crate::wire::WireError;
use crate::workload::Workload;

/// Bits in front of the IPv4 address inside an IPv4-mapped IPv6 one.
const MAPPED_BITS: u8 = 96;

/// A workload as the mesh uses it.
///
/// # Errors
/// When it has no uid.
pub fn workload(mut workload: Workload) -> Result<Workload, WireError> {
    if workload.uid.is_empty() {
        return Err(WireError::Missing { field: "uid" });
    }
    for address in &mut workload.addresses {
        *address = address.to_canonical();
    }
    workload.waypoint.iter_mut().chain(&mut workload.network_gateway).for_each(gateway);
    if let Some(tunnel) = &mut workload.application_tunnel {
        tunnel.port = tunnel.port.filter(|port| *port != 0);
    }
    Ok(workload)
}

/// A service as the mesh uses it. A range of one address is a plain virtual address.
///
/// # Errors
/// When it has no hostname, or a namespace that cannot be part of its key.
pub fn service(mut service: Service) -> Result<Service, WireError> {
    if service.hostname.is_empty() {
        return Err(WireError::Missing { field: "hostname" });
    }
    // Otherwise its xDS name, by which it is removed, would be that of another service.
    if service.namespace.as_str().contains('/') {
        return Err(WireError::ServiceName {
            field: "namespace",
            value: service.namespace.as_str().to_owned(),
        });
    }
    for vip in &mut service.vips {
        vip.address = vip.address.to_canonical();
    }
    let vips = &mut service.vips;
    service.cidr_vips.retain_mut(|range| {
        range.cidr = canonical_range(range.cidr).trunc();
        let single = range.cidr.prefix_len() == range.cidr.max_prefix_len();
        if single {
            vips.push(NetworkAddress { network: range.network.clone(), address: range.cidr.addr() });
        }
        !single
    });
    service.waypoint.iter_mut().for_each(gateway);
    service.weighted_waypoints.iter_mut().for_each(|(waypoint, _)| gateway(waypoint));
    Ok(service)
}

/// A policy as the mesh uses it.
///
/// # Errors
/// When it applies to a namespace and names none: it would apply to no workload, and those it was meant for would not be
/// protected.
pub fn policy(mut policy: Policy) -> Result<Policy, WireError> {
    if policy.namespace.is_empty() && policy.scope == Scope::Namespace {
        return Err(WireError::Missing { field: "namespace" });
    }
    for wanted in policy.rules.iter_mut().flatten().flatten() {
        let Match { source_ips, not_source_ips, destination_ips, not_destination_ips, .. } = wanted;
        let ranges = source_ips.iter_mut().chain(not_source_ips);
        for range in ranges.chain(destination_ips).chain(not_destination_ips) {
            *range = canonical_range(*range);
        }
    }
    Ok(policy)
}

/// A range of IPv4-mapped IPv6 addresses is one of IPv4: packets and sockets of such an address are IPv4.
#[must_use]
pub fn canonical_range(range: IpNet) -> IpNet {
    let mapped = |address: Ipv6Addr| address.to_ipv4_mapped();
    match range {
        IpNet::V6(v6) if v6.prefix_len() >= MAPPED_BITS => mapped(v6.addr())
            .and_then(|v4| Ipv4Net::new(v4, v6.prefix_len() - MAPPED_BITS).ok())
            .map_or(range, IpNet::V4),
        other => other,
    }
}

/// An absent port is 15008.
fn gateway(gateway: &mut GatewayAddress) {
    if gateway.hbone_mtls_port == 0 {
        gateway.hbone_mtls_port = HBONE_PORT;
    }
    if let GatewayDestination::Address(address) = &mut gateway.destination {
        address.address = address.address.to_canonical();
    }
}
