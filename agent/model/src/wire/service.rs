//! Converts `istio.workload.Service`.

use isthmus_proto::workload as proto;

use super::{WireError, addr};
use crate::addr::{GatewayAddress, NetworkAddress};
use crate::admit;
use crate::intern::Interner;
use crate::service::{
    HealthPolicy, IpFamilies, LbMode, LbScope, LoadBalancer, NetworkCidr, Service, Visibility,
};

pub(super) fn read(wire: proto::Service, texts: &mut Interner) -> Result<Service, WireError> {
    let proto::Service {
        name,
        namespace,
        hostname,
        addresses,
        ports,
        subject_alt_names,
        waypoint,
        load_balancing,
        ip_families: families,
        extensions: _,
        canonical,
        ingress_use_waypoint: _,
        weighted_waypoints,
        visibility: seen_by,
    } = wire;
    let (vips, cidr_vips) = virtual_addresses(addresses, texts)?;
    admit::service(Service {
        name: texts.name(&name),
        namespace: texts.name(&namespace),
        hostname: texts.name(&hostname),
        vips,
        cidr_vips,
        ports: addr::ports("ports", ports)?,
        // A name that is not a SPIFFE identity of the mesh can never be presented by a peer: it is left out.
        subject_alt_names: subject_alt_names.iter().filter_map(|name| name.parse().ok()).collect(),
        waypoint: waypoint.map(|wire| addr::gateway("waypoint", wire, texts)).transpose()?,
        weighted_waypoints: weighted_waypoints
            .into_iter()
            .map(|wire| weighted(wire, texts))
            .collect::<Result<_, _>>()?,
        load_balancer: load_balancing.map(load_balancer).transpose()?,
        ip_families: ip_families(families),
        canonical,
        visibility: visibility(seen_by),
    })
}

fn virtual_addresses(
    wire: Vec<proto::NetworkAddress>,
    texts: &mut Interner,
) -> Result<(Vec<NetworkAddress>, Vec<NetworkCidr>), WireError> {
    let (mut vips, mut cidr_vips) = (Vec::new(), Vec::new());
    for proto::NetworkAddress { network, address, length } in wire {
        let network = texts.name(&network);
        let Some(length) = length else {
            vips.push(NetworkAddress { network, address: addr::ip("addresses", &address)? });
            continue;
        };
        cidr_vips.push(NetworkCidr { network, cidr: addr::range("addresses.length", &address, length)? });
    }
    Ok((vips, cidr_vips))
}

fn weighted(wire: proto::WeightedWaypoint, texts: &mut Interner) -> Result<(GatewayAddress, u32), WireError> {
    let proto::WeightedWaypoint { destination, weight } = wire;
    let field = "weighted_waypoints.destination";
    let destination = destination.ok_or(WireError::Missing { field })?;
    Ok((addr::gateway(field, destination, texts)?, weight))
}

/// Unknown scopes and modes are ignored, with one exception: strict load balancing without one of its scopes would send
/// traffic where it must not go.
fn load_balancer(wire: proto::LoadBalancing) -> Result<LoadBalancer, WireError> {
    let proto::LoadBalancing { routing_preference, mode, health_policy } = wire;
    let mode = match proto::load_balancing::Mode::try_from(mode) {
        Ok(proto::load_balancing::Mode::Strict) => LbMode::Strict,
        Ok(proto::load_balancing::Mode::Failover) => LbMode::Failover,
        Ok(proto::load_balancing::Mode::Passthrough) => LbMode::Passthrough,
        Ok(proto::load_balancing::Mode::UnspecifiedMode) | Err(_) => LbMode::Standard,
    };
    let mut routing_preferences = Vec::with_capacity(routing_preference.len());
    for value in routing_preference {
        match scope(value) {
            Some(scope) => routing_preferences.push(scope),
            None if mode == LbMode::Strict => {
                return Err(WireError::Unsupported { field: "load_balancing.routing_preference", value });
            }
            None => {}
        }
    }
    let health_policy = match proto::load_balancing::HealthPolicy::try_from(health_policy) {
        Ok(proto::load_balancing::HealthPolicy::AllowAll) => HealthPolicy::AllowAll,
        Ok(proto::load_balancing::HealthPolicy::OnlyHealthy) | Err(_) => HealthPolicy::OnlyHealthy,
    };
    Ok(LoadBalancer { routing_preferences, mode, health_policy })
}

fn scope(value: i32) -> Option<LbScope> {
    match proto::load_balancing::Scope::try_from(value).ok()? {
        proto::load_balancing::Scope::UnspecifiedScope => None,
        proto::load_balancing::Scope::Region => Some(LbScope::Region),
        proto::load_balancing::Scope::Zone => Some(LbScope::Zone),
        proto::load_balancing::Scope::Subzone => Some(LbScope::Subzone),
        proto::load_balancing::Scope::Node => Some(LbScope::Node),
        proto::load_balancing::Scope::Cluster => Some(LbScope::Cluster),
        proto::load_balancing::Scope::Network => Some(LbScope::Network),
    }
}

fn ip_families(value: i32) -> Option<IpFamilies> {
    match proto::IpFamilies::try_from(value).ok()? {
        proto::IpFamilies::Automatic => None,
        proto::IpFamilies::Ipv4Only => Some(IpFamilies::Ipv4),
        proto::IpFamilies::Ipv6Only => Some(IpFamilies::Ipv6),
        proto::IpFamilies::Dual => Some(IpFamilies::Dual),
    }
}

fn visibility(value: i32) -> Visibility {
    match proto::ServiceVisibility::try_from(value) {
        Ok(proto::ServiceVisibility::Namespace) => Visibility::Namespace,
        Ok(proto::ServiceVisibility::Public) | Err(_) => Visibility::Public,
    }
}
