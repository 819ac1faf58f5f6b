//! Network interfaces: veth pairs and bridges that connect namespaces.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;

use futures_util::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use nix::errno::Errno;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth};

use super::connection::{cause, dump, tolerate, within};
use crate::Error;
use crate::netns::Netns;

impl Netns {
    /// A new network namespace with its loopback interface up. It exists for as long as the value, or as a process
    /// that has joined it.
    ///
    /// # Errors
    /// Without `CAP_SYS_ADMIN` in the current user namespace.
    pub fn create() -> Result<Self, Error> {
        let netns = Self::create_down()?;
        set_up(&netns, "lo")?;
        Ok(netns)
    }
}

/// Brings an interface up.
///
/// # Errors
/// When there is no such interface or the kernel refuses.
pub fn set_up(netns: &Netns, ifname: &str) -> Result<(), Error> {
    within(netns, async |handle| {
        let link = LinkUnspec::new_with_index(index_of(&handle, ifname).await?).up().build();
        let done = handle.link().change(link).execute().await;
        done.map_err(cause).map_err(Error::on("set up", format!("{ifname} in {}", netns.id())))
    })
}

/// Connects two namespaces with a veth pair, both ends down. The kernel deletes the pair with either namespace.
///
/// # Errors
/// When a name is in use or the kernel refuses.
pub fn add_veth(a_ns: &Netns, a: &str, b_ns: &Netns, b: &str) -> Result<(), Error> {
    let peer = LinkUnspec::new_with_name(b).setns_by_fd(b_ns.fd().as_raw_fd()).build();
    let pair = LinkVeth::new(a, b).set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
    create(a_ns, a, pair.build())
}

/// Adds a bridge that is up.
///
/// # Errors
/// When the name is in use or the kernel refuses.
pub fn add_bridge(netns: &Netns, name: &str) -> Result<(), Error> {
    create(netns, name, LinkBridge::new(name).up().build())
}

/// Makes an interface a port of a bridge.
///
/// # Errors
/// When either interface does not exist or the kernel refuses.
pub fn set_master(netns: &Netns, ifname: &str, bridge: &str) -> Result<(), Error> {
    within(netns, async |handle| {
        let port = LinkUnspec::new_with_index(index_of(&handle, ifname).await?);
        let port = port.controller(index_of(&handle, bridge).await?).build();
        let done = handle.link().change(port).execute().await;
        done.map_err(cause)
            .map_err(Error::on("add to bridge", format!("{bridge}: {ifname} in {}", netns.id())))
    })
}

/// Deletes an interface (of a veth pair: both ends).
///
/// # Errors
/// When the kernel refuses, except because there is no such interface.
pub fn del_link(netns: &Netns, ifname: &str) -> Result<(), Error> {
    within(netns, async |handle| {
        let link = LinkUnspec::new_with_name(ifname).build();
        let done = handle.link().del_with_message(link).execute().await;
        tolerate(done, &[Errno::ENODEV])
            .map_err(Error::on("delete link", format!("{ifname} in {}", netns.id())))
    })
}

fn create(netns: &Netns, name: &str, link: LinkMessage) -> Result<(), Error> {
    within(netns, async |handle| {
        let done = handle.link().add(link).execute().await;
        done.map_err(cause).map_err(Error::on("add link", format!("{name} in {}", netns.id())))
    })
}

/// The index of an interface of the namespace.
pub(crate) fn index(netns: &Netns, ifname: &str) -> Result<u32, Error> {
    within(netns, async |handle| index_of(&handle, ifname).await)
}

/// The index of an interface in the connection's namespace.
pub(super) async fn index_of(handle: &Handle, ifname: &str) -> Result<u32, Error> {
    let mut found = Box::pin(handle.link().get().match_name(ifname).execute());
    let found = match found.next().await {
        Some(found) => found.map_err(cause),
        None => Err(Errno::ENODEV.into()),
    };
    found.map(|link| link.header.index).map_err(Error::on("find interface", ifname))
}

/// Interface names by index.
pub(super) async fn names(handle: &Handle) -> io::Result<HashMap<u32, String>> {
    let links = dump(handle, RouteNetlinkMessage::GetLink(LinkMessage::default())).await?;
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
