//! Links: what worlds of namespaces are joined with.

use std::collections::HashMap;
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use nix::errno::Errno;

use super::{rtnl, tolerate};
use crate::Error;
use crate::netlink::Netlink;
use crate::netns::Netns;

/// Brings an interface up.
///
/// # Errors
/// When there is no such interface or the kernel refuses.
pub fn set_up(netns: &Netns, ifname: &str) -> Result<(), Error> {
    let netlink = rtnl(netns)?;
    let mut link = LinkMessage::default();
    link.header.index = index(&netlink, ifname)?;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    netlink
        .change(RouteNetlinkMessage::SetLink(link), 0)
        .map_err(Error::on("set up", format!("{ifname} in {}", netns.id())))
}

/// Joins two namespaces by a pair of virtual Ethernet interfaces, both down. When either namespace goes, so does the
/// pair.
///
/// # Errors
/// When a name is taken or the kernel refuses.
pub fn add_veth(a_ns: &Netns, a: &str, b_ns: &Netns, b: &str) -> Result<(), Error> {
    let mut peer = LinkMessage::default();
    peer.attributes =
        vec![LinkAttribute::IfName(b.to_owned()), LinkAttribute::NetNsFd(b_ns.fd().as_raw_fd())];
    let info = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)))];
    create(a_ns, a, info)
}

/// Adds a bridge that is up.
///
/// # Errors
/// When the name is taken or the kernel refuses.
pub fn add_bridge(netns: &Netns, name: &str) -> Result<(), Error> {
    create(netns, name, vec![LinkInfo::Kind(InfoKind::Bridge)])?;
    set_up(netns, name)
}

/// Makes an interface a port of a bridge.
///
/// # Errors
/// When either is missing or the kernel refuses.
pub fn set_master(netns: &Netns, ifname: &str, bridge: &str) -> Result<(), Error> {
    let netlink = rtnl(netns)?;
    let mut link = LinkMessage::default();
    link.header.index = index(&netlink, ifname)?;
    link.attributes = vec![LinkAttribute::Controller(index(&netlink, bridge)?)];
    netlink
        .change(RouteNetlinkMessage::SetLink(link), 0)
        .map_err(Error::on("add to bridge", format!("{bridge}: {ifname} in {}", netns.id())))
}

/// Deletes an interface (of a veth pair: both ends).
///
/// # Errors
/// When the kernel refuses, except that there is no such interface.
pub fn del_link(netns: &Netns, ifname: &str) -> Result<(), Error> {
    let netlink = rtnl(netns)?;
    let mut link = LinkMessage::default();
    link.attributes = vec![LinkAttribute::IfName(ifname.to_owned())];
    let done = netlink.change(RouteNetlinkMessage::DelLink(link), 0);
    tolerate(done, &[Errno::ENODEV]).map_err(Error::on("delete link", format!("{ifname} in {}", netns.id())))
}

fn create(netns: &Netns, name: &str, info: Vec<LinkInfo>) -> Result<(), Error> {
    let mut link = LinkMessage::default();
    link.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::LinkInfo(info)];
    rtnl(netns)?
        .change(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
        .map_err(Error::on("add link", format!("{name} in {}", netns.id())))
}

/// The index of an interface.
pub(crate) fn index(netlink: &Netlink, ifname: &str) -> Result<u32, Error> {
    let found = names(netlink)?.into_iter().find(|(_, name)| name == ifname);
    found.map(|(index, _)| index).ok_or_else(|| Error::new("find interface", ifname, Errno::ENODEV))
}

/// Interface names by index.
pub(super) fn names(netlink: &Netlink) -> Result<HashMap<u32, String>, Error> {
    let links = netlink
        .dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))
        .map_err(Error::on("list", "interfaces"))?;
    let named = links.into_iter().filter_map(|message| {
        let RouteNetlinkMessage::NewLink(link) = message else { return None };
        let name = link.attributes.into_iter().find_map(|a| match a {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        });
        Some((link.header.index, name?))
    });
    Ok(named.collect())
}
