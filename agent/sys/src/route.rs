//! Rules, routes, addresses and links of one namespace, over netlink. Every call names its namespace, blocks for
//! microseconds, and can be repeated: what is there already is no error, what is gone already is none either.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use crate::Error;
use crate::netlink::Netlink;
use crate::netns::Netns;

mod link;

pub(crate) use link::index;
pub use link::{add_bridge, add_veth, del_link, set_master, set_up};

/// Routes packets that carry `mark` under `mask` by `table`, at preference `pref`.
///
/// # Errors
/// When the kernel refuses, except that the rule is there already.
pub fn add_fwmark_rule(
    netns: &Netns,
    v6: bool,
    mark: u32,
    mask: u32,
    table: u32,
    pref: u32,
) -> Result<(), Error> {
    let rule = fwmark_rule(v6, mark, mask, table, pref);
    let done = rtnl(netns)?.change(RouteNetlinkMessage::NewRule(rule), NLM_F_CREATE | NLM_F_EXCL);
    tolerate(done, &[Errno::EEXIST]).map_err(Error::on(
        "add rule",
        format!("fwmark {mark:#x}/{mask:#x} lookup {table} in {}", netns.id()),
    ))
}

/// Takes back [`add_fwmark_rule`].
///
/// # Errors
/// When the kernel refuses, except that there is no such rule.
pub fn del_fwmark_rule(
    netns: &Netns,
    v6: bool,
    mark: u32,
    mask: u32,
    table: u32,
    pref: u32,
) -> Result<(), Error> {
    let rule = fwmark_rule(v6, mark, mask, table, pref);
    let done = rtnl(netns)?.change(RouteNetlinkMessage::DelRule(rule), 0);
    tolerate(done, &[Errno::ENOENT, Errno::EAFNOSUPPORT]).map_err(Error::on(
        "delete rule",
        format!("fwmark {mark:#x}/{mask:#x} lookup {table} in {}", netns.id()),
    ))
}

/// Delivers everything that is looked up in `table` to this host: `local 0.0.0.0/0 dev lo table T` or its IPv6 twin.
///
/// # Errors
/// When the kernel refuses (for IPv6: also when `lo` has it disabled).
pub fn add_local_default(netns: &Netns, v6: bool, table: u32) -> Result<(), Error> {
    let netlink = rtnl(netns)?;
    let route = local_default(index(&netlink, "lo")?, v6, table);
    netlink
        .change(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_REPLACE)
        .map_err(Error::on("add route", format!("local default table {table} in {}", netns.id())))
}

/// Takes back [`add_local_default`].
///
/// # Errors
/// When the kernel refuses, except that there is no such route.
pub fn del_local_default(netns: &Netns, v6: bool, table: u32) -> Result<(), Error> {
    let netlink = rtnl(netns)?;
    let route = local_default(index(&netlink, "lo")?, v6, table);
    let done = netlink.change(RouteNetlinkMessage::DelRoute(route), 0);
    tolerate(done, &[Errno::ESRCH, Errno::ENOENT, Errno::EAFNOSUPPORT])
        .map_err(Error::on("delete route", format!("local default table {table} in {}", netns.id())))
}

/// Gives an interface an address. IPv6 addresses skip duplicate address detection: they are usable at once.
///
/// # Errors
/// When there is no such interface or the kernel refuses.
pub fn add_address(netns: &Netns, ifname: &str, address: IpNet) -> Result<(), Error> {
    let netlink = rtnl(netns)?;
    let mut message = AddressMessage::default();
    message.header.index = index(&netlink, ifname)?;
    message.header.prefix_len = address.prefix_len();
    message.header.family = family(address.addr().is_ipv6());
    message.attributes =
        vec![AddressAttribute::Address(address.addr()), AddressAttribute::Local(address.addr())];
    match address.addr() {
        IpAddr::V4(v4) if v4.is_loopback() => message.header.scope = AddressScope::Host,
        IpAddr::V4(_) => {}
        IpAddr::V6(_) => message.header.flags |= AddressHeaderFlags::Nodad,
    }
    netlink
        .change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
        .map_err(Error::on("add address", format!("{address} to {ifname} in {}", netns.id())))
}

/// Adds or replaces a route in the main table. At least one of `via` and `dev` is needed; with `via` off the link's
/// subnets, give `dev` too and the gateway counts as on-link.
///
/// # Errors
/// When the interface is not there or the kernel refuses.
pub fn add_route(netns: &Netns, dst: IpNet, via: Option<IpAddr>, dev: Option<&str>) -> Result<(), Error> {
    let netlink = rtnl(netns)?;
    let mut route = RouteMessage::default();
    route.header = header(dst.addr().is_ipv6(), dst.prefix_len());
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Static;
    route.header.kind = RouteType::Unicast;
    route.header.scope =
        if via.is_none() && dst.addr().is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
    route.attributes.push(RouteAttribute::Destination(RouteAddress::from(dst.network())));
    if let Some(dev) = dev {
        route.attributes.push(RouteAttribute::Oif(index(&netlink, dev)?));
    }
    if let Some(via) = via {
        route.attributes.push(RouteAttribute::Gateway(RouteAddress::from(via)));
        if dev.is_some() {
            route.header.flags |= netlink_packet_route::route::RouteFlags::Onlink;
        }
    }
    netlink
        .change(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_REPLACE)
        .map_err(Error::on("add route", format!("{dst} via {via:?} dev {dev:?} in {}", netns.id())))
}

/// All addresses of the namespace with the names of their interfaces.
///
/// # Errors
/// When the kernel refuses the dump.
pub fn addresses(netns: &Netns) -> Result<Vec<(String, IpNet)>, Error> {
    let netlink = rtnl(netns)?;
    let names = link::names(&netlink)?;
    let found = netlink
        .dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))
        .map_err(Error::on("list addresses of", netns.id()))?;
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

/// The fwmark rules of the namespace as (mark, mask, table, preference): what [`add_fwmark_rule`] made and others.
///
/// # Errors
/// When the kernel refuses the dump.
pub fn fwmark_rules(netns: &Netns, v6: bool) -> Result<Vec<(u32, u32, u32, u32)>, Error> {
    let mut request = RuleMessage::default();
    request.header.family = family(v6);
    let found = rtnl(netns)?
        .dump(RouteNetlinkMessage::GetRule(request))
        .map_err(Error::on("list rules of", netns.id()))?;
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

/// The destinations of the `local` routes in a table other than the kernel's own: what [`add_local_default`] made.
///
/// # Errors
/// When the kernel refuses the dump.
pub fn local_routes(netns: &Netns, v6: bool, table: u32) -> Result<Vec<IpNet>, Error> {
    let mut request = RouteMessage::default();
    request.header.address_family = family(v6);
    let found = rtnl(netns)?
        .dump(RouteNetlinkMessage::GetRoute(request))
        .map_err(Error::on("list routes of", netns.id()))?;
    let any = if v6 { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
    let routes = found.into_iter().filter_map(|message| {
        let RouteNetlinkMessage::NewRoute(route) = message else { return None };
        let (mut of, mut to) = (u32::from(route.header.table), any);
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

fn rtnl(netns: &Netns) -> Result<Netlink, Error> {
    Netlink::open(netns, NETLINK_ROUTE)
}

fn tolerate(done: std::io::Result<()>, fine: &[Errno]) -> std::io::Result<()> {
    match done {
        Err(e) if fine.iter().any(|errno| e.raw_os_error() == Some(*errno as i32)) => Ok(()),
        done => done,
    }
}

fn family(v6: bool) -> AddressFamily {
    if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

fn header(v6: bool, prefix: u8) -> RouteHeader {
    RouteHeader { address_family: family(v6), destination_prefix_length: prefix, ..RouteHeader::default() }
}

fn fwmark_rule(v6: bool, mark: u32, mask: u32, table: u32, pref: u32) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family(v6);
    rule.header.action = RuleAction::ToTable;
    rule.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    rule.attributes = vec![
        RuleAttribute::FwMark(mark),
        RuleAttribute::FwMask(mask),
        RuleAttribute::Table(table),
        RuleAttribute::Priority(pref),
    ];
    rule
}

fn local_default(lo: u32, v6: bool, table: u32) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header = header(v6, 0);
    route.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    route.header.protocol = RouteProtocol::Boot;
    route.header.scope = RouteScope::Host;
    route.header.kind = RouteType::Local;
    route.attributes = vec![RouteAttribute::Oif(lo), RouteAttribute::Table(table)];
    route
}
