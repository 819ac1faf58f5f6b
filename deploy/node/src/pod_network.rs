//! Addresses and routes of the namespaces behind a node. A node has no bridge for its pods: each interface gets a host
//! route, and the pods' gateway is an address of the node's loopback.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use isthmus_sys::netns::Netns;
use isthmus_sys::route;

/// The `n`-th address of a network.
#[must_use]
pub fn nth(net: Ipv4Net, n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(net.network().to_bits() + n)
}

/// An address as a network of its own, `/32`.
#[must_use]
pub fn host(address: Ipv4Addr) -> IpNet {
    IpNet::from(IpAddr::from(address))
}

/// Adds the routes between a node and one namespace behind it: the node gets a route to `address`, the namespace a
/// default route through `gateway`.
///
/// # Errors
/// When the kernel refuses a route.
pub fn join_pod_side(
    node: &Netns,
    node_if: &str,
    pod: &Netns,
    gateway: Ipv4Addr,
    address: Ipv4Addr,
) -> Result<(), isthmus_sys::Error> {
    route::add_route(node, host(address), None, Some(node_if))?;
    route::add_route(pod, host(gateway), None, Some("eth0"))?;
    route::add_route(pod, IpNet::V4(Ipv4Net::default()), Some(gateway.into()), Some("eth0"))
}
