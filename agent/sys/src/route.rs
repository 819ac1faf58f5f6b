//! Routing rules, routes, addresses and links of a network namespace, over rtnetlink. Every call blocks for a fraction
//! of a millisecond and is idempotent: adding what exists and deleting what does not are no errors.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use rtnetlink::{Handle, RouteMessageBuilder, RuleAddRequest};

use crate::Error;
use crate::netns::Netns;
use connection::{cause, dump, tolerate, within};
use link::index_of;

mod connection;
mod link;
mod local;

pub(crate) use link::index;
pub use link::{add_bridge, add_veth, del_link, set_master, set_up};
pub use local::is_local;

/// Adds the routing rule `fwmark mark/mask lookup table` with preference `pref`.
///
/// # Errors
/// When the kernel refuses, except because the rule exists.
pub fn add_fwmark_rule(
    netns: &Netns,
    v6: bool,
    mark: u32,
    mask: u32,
    table: u32,
    pref: u32,
) -> Result<(), Error> {
    within(netns, async |handle| {
        let rule = fwmark_rule(&handle, v6, mark, mask, table, pref);
        tolerate(rule.execute().await, &[Errno::EEXIST]).map_err(Error::on(
            "add rule",
            format!("fwmark {mark:#x}/{mask:#x} lookup {table} in {}", netns.id()),
        ))
    })
}

/// Deletes the rule of [`add_fwmark_rule`].
///
/// # Errors
/// When the kernel refuses, except because there is no such rule.
pub fn del_fwmark_rule(
    netns: &Netns,
    v6: bool,
    mark: u32,
    mask: u32,
    table: u32,
    pref: u32,
) -> Result<(), Error> {
    within(netns, async |handle| {
        let rule = fwmark_rule(&handle, v6, mark, mask, table, pref).message_mut().clone();
        let done = handle.rule().del(rule).execute().await;
        tolerate(done, &[Errno::ENOENT, Errno::EAFNOSUPPORT]).map_err(Error::on(
            "delete rule",
            format!("fwmark {mark:#x}/{mask:#x} lookup {table} in {}", netns.id()),
        ))
    })
}

/// Adds the route `local 0.0.0.0/0 dev lo` (or `::/0`) to `table`: packets that a rule sends there are delivered
/// locally, whatever their destination.
///
/// # Errors
/// When the kernel refuses; for IPv6 also when it is disabled on `lo`.
pub fn add_local_default(netns: &Netns, v6: bool, table: u32) -> Result<(), Error> {
    within(netns, async |handle| {
        let route = local_default(index_of(&handle, "lo").await?, v6, table);
        let done = handle.route().add(route).replace().execute().await;
        done.map_err(cause)
            .map_err(Error::on("add route", format!("local default table {table} in {}", netns.id())))
    })
}

/// Deletes the route of [`add_local_default`].
///
/// # Errors
/// When the kernel refuses, except because there is no such route.
pub fn del_local_default(netns: &Netns, v6: bool, table: u32) -> Result<(), Error> {
    within(netns, async |handle| {
        let route = local_default(index_of(&handle, "lo").await?, v6, table);
        let done = handle.route().del(route).execute().await;
        tolerate(done, &[Errno::ESRCH, Errno::ENOENT, Errno::EAFNOSUPPORT])
            .map_err(Error::on("delete route", format!("local default table {table} in {}", netns.id())))
    })
}

/// Adds an address to an interface. IPv6 addresses skip duplicate address detection, which would make them unusable for
/// a second.
///
/// # Errors
/// When there is no such interface or the kernel refuses.
pub fn add_address(netns: &Netns, ifname: &str, address: IpNet) -> Result<(), Error> {
    within(netns, async |handle| {
        let index = index_of(&handle, ifname).await?;
        let mut request = handle.address().add(index, address.addr(), address.prefix_len()).replace();
        let header = &mut request.message_mut().header;
        match address.addr() {
            IpAddr::V4(v4) if v4.is_loopback() => header.scope = AddressScope::Host,
            IpAddr::V4(_) => {}
            IpAddr::V6(_) => header.flags |= AddressHeaderFlags::Nodad,
        }
        let done = request.execute().await;
        done.map_err(cause)
            .map_err(Error::on("add address", format!("{address} to {ifname} in {}", netns.id())))
    })
}

/// Adds or replaces a route in the main table. At least one of `via` and `dev` is required; a gateway outside of the
/// link's subnets needs `dev` too and is then on-link.
///
/// # Errors
/// When there is no such interface or the kernel refuses.
pub fn add_route(netns: &Netns, dst: IpNet, via: Option<IpAddr>, dev: Option<&str>) -> Result<(), Error> {
    let failed = || Error::on("add route", format!("{dst} via {via:?} dev {dev:?} in {}", netns.id()));
    within(netns, async |handle| {
        let index = match dev {
            Some(dev) => Some(index_of(&handle, dev).await?),
            None => None,
        };
        let route = unicast(dst, via, index).map_err(failed())?;
        handle.route().add(route).replace().execute().await.map_err(cause).map_err(failed())
    })
}

/// All addresses of the namespace, with the names of their interfaces.
///
/// # Errors
/// When the kernel refuses the dump.
pub fn addresses(netns: &Netns) -> Result<Vec<(String, IpNet)>, Error> {
    let list = async |handle: Handle| {
        let names = link::names(&handle).await?;
        let found = dump(&handle, RouteNetlinkMessage::GetAddress(AddressMessage::default())).await?;
        Ok((names, found))
    };
    let (names, found) = within(netns, async |handle| {
        list(handle).await.map_err(Error::on::<io::Error>("list addresses of", netns.id()))
    })?;
    let mut addresses = Vec::new();
    for message in found {
        let RouteNetlinkMessage::NewAddress(message) = message else { continue };
        let local = message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
        let address = message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        });
        let name = names.get(&message.header.index).cloned().unwrap_or_default();
        if let Some(net) = local.or(address).and_then(|ip| IpNet::new(ip, message.header.prefix_len).ok()) {
            addresses.push((name, net));
        }
    }
    Ok(addresses)
}

/// All fwmark rules of the namespace as (mark, mask, table, preference).
///
/// # Errors
/// When the kernel refuses the dump.
pub fn fwmark_rules(netns: &Netns, v6: bool) -> Result<Vec<(u32, u32, u32, u32)>, Error> {
    let mut request = RuleMessage::default();
    request.header.family = family(v6);
    let request = RouteNetlinkMessage::GetRule(request);
    let found = within(netns, async |handle| {
        dump(&handle, request).await.map_err(Error::on("list rules of", netns.id()))
    })?;
    let rules = found.into_iter().filter_map(|message| {
        let RouteNetlinkMessage::NewRule(rule) = message else { return None };
        let (mut mark, mut mask, mut pref, mut table) = (None, u32::MAX, 0, u32::from(rule.header.table));
        for attribute in rule.attributes {
            match attribute {
                RuleAttribute::FwMark(v) => mark = Some(v),
                RuleAttribute::FwMask(v) => mask = v,
                RuleAttribute::Priority(v) => pref = v,
                RuleAttribute::Table(v) => table = v,
                _ => {}
            }
        }
        Some((mark?, mask, table, pref))
    });
    Ok(rules.collect())
}

/// The destinations of the `local` routes in a table, as [`add_local_default`] makes them.
///
/// # Errors
/// When the kernel refuses the dump.
pub fn local_routes(netns: &Netns, v6: bool, table: u32) -> Result<Vec<IpNet>, Error> {
    let mut request = RouteMessage::default();
    request.header.address_family = family(v6);
    let request = RouteNetlinkMessage::GetRoute(request);
    let found = within(netns, async |handle| {
        dump(&handle, request).await.map_err(Error::on("list routes of", netns.id()))
    })?;
    let routes = found.into_iter().filter_map(|message| {
        let RouteNetlinkMessage::NewRoute(route) = message else { return None };
        let (mut of, mut to) = (u32::from(route.header.table), any(v6));
        for attribute in route.attributes {
            match attribute {
                RouteAttribute::Table(v) => of = v,
                RouteAttribute::Destination(RouteAddress::Inet(v)) => to = v.into(),
                RouteAttribute::Destination(RouteAddress::Inet6(v)) => to = v.into(),
                _ => {}
            }
        }
        let wanted = of == table && route.header.kind == RouteType::Local;
        wanted.then(|| IpNet::new(to, route.header.destination_prefix_length).ok()).flatten()
    });
    Ok(routes.collect())
}

fn family(v6: bool) -> AddressFamily {
    if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

fn any(v6: bool) -> IpAddr {
    if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

fn fwmark_rule(handle: &Handle, v6: bool, mark: u32, mask: u32, table: u32, pref: u32) -> RuleAddRequest {
    let rule = handle.rule().add().action(RuleAction::ToTable);
    let mut rule = rule.fw_mark(mark).table_id(table).priority(pref);
    rule.message_mut().header.family = family(v6);
    rule.message_mut().attributes.push(RuleAttribute::FwMask(mask));
    rule
}

fn local_default(lo: u32, v6: bool, table: u32) -> RouteMessage {
    let route = RouteMessageBuilder::<IpAddr>::new().output_interface(lo).table_id(table);
    let route = route.protocol(RouteProtocol::Boot).scope(RouteScope::Host).kind(RouteType::Local);
    let mut route = route.build();
    route.header.address_family = family(v6);
    route
}

fn unicast(dst: IpNet, via: Option<IpAddr>, dev: Option<u32>) -> io::Result<RouteMessage> {
    let route = RouteMessageBuilder::<IpAddr>::new();
    let mut route = route.destination_prefix(dst.network(), dst.prefix_len()).map_err(io::Error::other)?;
    if let Some(dev) = dev {
        route = route.output_interface(dev);
    }
    let route = match via {
        Some(via) if dev.is_some() => route.gateway(via).map_err(io::Error::other)?.onlink(),
        Some(via) => route.gateway(via).map_err(io::Error::other)?,
        None if dst.addr().is_ipv4() => route.scope(RouteScope::Link),
        None => route,
    };
    Ok(route.build())
}
