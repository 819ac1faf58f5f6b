//! Whether an address is one of a namespace's own, as its kernel sees it: Kubernetes does not list all of them: a
//! virtual address and that of a second interface are known to the kernel alone.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use super::family;
use crate::Error;
use crate::netlink::{Netlink, encode};
use crate::netns::Netns;

/// Whether packets to this address are delivered in the namespace itself.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn is_local(netns: &Netns, address: IpAddr) -> Result<bool, Error> {
    let netlink = Netlink::open(netns, NETLINK_ROUTE)?;
    look_up(&netlink, address.to_canonical()).map_err(Error::on("look up the route to", address))
}

fn look_up(netlink: &Netlink, address: IpAddr) -> io::Result<bool> {
    let mut request = RouteMessage::default();
    request.header.address_family = family(address.is_ipv6());
    let (length, destination) = match address {
        IpAddr::V4(v4) => (32, RouteAddress::Inet(v4)),
        IpAddr::V6(v6) => (128, RouteAddress::Inet6(v6)),
    };
    request.header.destination_prefix_length = length;
    request.attributes.push(RouteAttribute::Destination(destination));
    netlink.send(&encode(RouteNetlinkMessage::GetRoute(request), 0, 1))?;
    for reply in netlink.receive::<RouteNetlinkMessage>()? {
        match reply.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
                return Ok(route.header.kind == RouteType::Local);
            }
            NetlinkPayload::Error(error) => {
                let error = error.to_io();
                let none = [Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EACCES, Errno::EINVAL];
                let unreachable = none.iter().any(|errno| error.raw_os_error() == Some(*errno as i32));
                return if unreachable { Ok(false) } else { Err(error) };
            }
            _ => {}
        }
    }
    Ok(false)
}
