//! Roads past netfilter: what on an interface takes packets before, or instead of, the hooks that rules live in; and
//! closing an interface below all of them. It must not know whose interfaces they are.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd as _;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage, LinkXdp, XdpAttached};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use crate::Error;
use crate::netlink::{Netlink, Raw, attribute, attributes};
use crate::netns::Netns;

const NEW_QDISC: u16 = 36;
const DEL_QDISC: u16 = 37;
const GET_QDISC: u16 = 38;
const GET_FILTER: u16 = 46;
const GET_NSID: u16 = 90;
/// `TCA_KIND`
const KIND: u16 = 1;
/// `TC_H_ROOT`
const ROOT: u32 = 0xffff_ffff;
/// `TC_H_CLSACT` with the minors of ingress and egress; the first is also that of the older `ingress` discipline.
const HOOKS: [(u32, &str); 2] = [(0xffff_fff2, "ingress"), (0xffff_fff3, "egress")];
/// The discipline that drops everything.
const BLACKHOLE: &[u8] = b"blackhole\0";

/// A road past netfilter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bypass {
    /// The interface.
    pub interface: String,
    /// What is on it.
    pub by: Road,
}

/// What takes the packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Road {
    /// A traffic control filter of this hook that redirects or copies packets (`mirred`), or runs a program.
    Filter(&'static str),
    /// An XDP program.
    Xdp,
    /// The interface is a port of a bridge.
    BridgePort,
    /// An interface of this kind on top of it, which has its own addresses (`macvtap`, `ipvlan`).
    Stacked(String),
}

impl fmt::Display for Bypass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let interface = &self.interface;
        match &self.by {
            Road::Filter(hook) => {
                write!(
                    f,
                    "a traffic control filter at the {hook} of {interface} takes packets past netfilter"
                )
            }
            Road::Xdp => write!(f, "an XDP program on {interface} takes packets past netfilter"),
            Road::BridgePort => {
                write!(f, "{interface} is a port of a bridge, whose frames pass netfilter by")
            }
            Road::Stacked(kind) => {
                write!(f, "a {kind} interface on {interface} takes packets past netfilter")
            }
        }
    }
}

/// An interface, as far as this module and the canary need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: Vec<u8>,
    /// The index of its peer or of the interface below, in the namespace `link_netns`, or in its own.
    pub link: Option<u32>,
    /// The kernel's local number of the namespace of `link`, when it is another one.
    pub link_netns: Option<i32>,
    loopback: bool,
    kind: Option<InfoKind>,
    bridge: bool,
    xdp: bool,
}

/// The interfaces of a namespace but for the loopback.
///
/// # Errors
/// When the kernel refuses the dump.
pub fn interfaces(netns: &Netns) -> Result<Vec<Interface>, Error> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let found = Netlink::open(netns, NETLINK_ROUTE)?
        .dump(request)
        .map_err(Error::on("list interfaces of", netns.id()))?;
    let links = found.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(interface(link)),
        _ => None,
    });
    Ok(links.filter(|link| !link.loopback).collect())
}

fn interface(link: LinkMessage) -> Interface {
    use netlink_packet_route::link::{LinkFlags, LinkLayerType};
    let header = link.header;
    let loopback =
        header.link_layer_type == LinkLayerType::Loopback || header.flags.contains(LinkFlags::Loopback);
    let mut found = Interface {
        index: header.index,
        name: String::new(),
        mac: Vec::new(),
        link: None,
        link_netns: None,
        loopback,
        kind: None,
        bridge: false,
        xdp: false,
    };
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name = name,
            LinkAttribute::Address(mac) => found.mac = mac,
            LinkAttribute::Link(index) => found.link = Some(index),
            LinkAttribute::LinkNetNsId(id) => found.link_netns = Some(id),
            LinkAttribute::Controller(_) => found.bridge = true,
            LinkAttribute::Xdp(list) => {
                found.xdp =
                    list.iter().any(|nla| matches!(nla, LinkXdp::Attached(how) if *how != XdpAttached::None));
            }
            LinkAttribute::LinkInfo(list) => {
                found.kind = list.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    found
}

/// Roads past netfilter on the interfaces of a namespace. Interfaces whose peer is in a third namespace are left out
/// when `outside` is given: only those that lead there, or to hardware, count.
///
/// # Errors
/// When the kernel refuses a dump.
pub fn find(netns: &Netns, outside: &Netns) -> Result<Vec<Bypass>, Error> {
    let all = interfaces(netns)?;
    let outside = nsid(netns, outside)?;
    let netlink = Netlink::open(netns, NETLINK_ROUTE)?;
    let failed = || Error::on("list traffic control filters of", netns.id());
    let mut found = Vec::new();
    for link in &all {
        let mut add = |by| found.push(Bypass { interface: link.name.clone(), by });
        for (hook, name) in HOOKS {
            if has_redirect(&netlink, link.index, hook).map_err(failed())? {
                add(Road::Filter(name));
            }
        }
        if !leads(link, outside) {
            continue;
        }
        if link.xdp {
            add(Road::Xdp);
        }
        if link.bridge {
            add(Road::BridgePort);
        }
        let on_top = all.iter().filter(|other| other.link == Some(link.index) && other.link_netns.is_none());
        for other in on_top {
            if let Some(kind) = &other.kind
                && matches!(kind, InfoKind::MacVlan | InfoKind::MacVtap | InfoKind::IpVlan | InfoKind::IpVtap)
            {
                add(Road::Stacked(kind.to_string()));
            }
        }
    }
    Ok(found)
}

/// Whether a namespace has a road of its own to a third one: an interface whose other end is neither here nor in
/// `inside`.
///
/// # Errors
/// When the kernel refuses a dump.
pub fn leads_past(netns: &Netns, inside: &Netns) -> Result<bool, Error> {
    let inside = nsid(netns, inside)?;
    Ok(interfaces(netns)?.iter().any(|link| match (link.link_netns, &link.kind) {
        (Some(id), _) => Some(id) != inside,
        // Hardware has no kind.
        (None, kind) => kind.is_none(),
    }))
}

fn leads(link: &Interface, outside: Option<i32>) -> bool {
    match (link.link_netns, &link.kind) {
        (Some(id), _) => Some(id) == outside,
        (None, kind) => kind.is_none(),
    }
}

/// The number by which the kernel names another namespace inside of this one; `None` when it has none, as when no
/// interface leads there.
fn nsid(netns: &Netns, other: &Netns) -> Result<Option<i32>, Error> {
    const NETNSA_NSID: u16 = 1;
    const NETNSA_FD: u16 = 3;
    let failed = || Error::on("find the number of a namespace in", netns.id());
    let fd = u32::try_from(other.fd().as_raw_fd()).map_err(io::Error::other).map_err(failed())?;
    let mut bytes = vec![0; 4];
    bytes.extend(attribute(NETNSA_FD, &fd.to_ne_bytes()));
    let netlink = Netlink::open(netns, NETLINK_ROUTE)?;
    let answer = netlink.request(Raw { kind: GET_NSID, bytes }, 0).map_err(failed())?;
    let id = answer.and_then(|message| {
        let bytes = message.bytes.get(4..)?.to_vec();
        let (_, value) = attributes(&bytes).find(|(kind, _)| *kind == NETNSA_NSID)?;
        Some(i32::from_ne_bytes(value.try_into().ok()?))
    });
    Ok(id.filter(|id| *id >= 0))
}

/// `struct tcmsg`
fn tcmsg(index: u32, parent: u32) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend(index.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(parent.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes
}

fn has_redirect(netlink: &Netlink, index: u32, hook: u32) -> io::Result<bool> {
    let filters = match netlink.dump(Raw { kind: GET_FILTER, bytes: tcmsg(index, hook) }) {
        // The interface has no discipline with this hook, or has gone.
        Err(error) if is(&error, &[Errno::EINVAL, Errno::ENOENT, Errno::ENODEV, Errno::EOPNOTSUPP]) => {
            return Ok(false);
        }
        found => found?,
    };
    let takes = |filter: &Raw| {
        let attributes: Vec<_> = attributes(filter.bytes.get(20..).unwrap_or_default()).collect();
        // The action is somewhere in the options; where depends on the classifier.
        attributes.iter().any(|(kind, value)| {
            (*kind == KIND && *value == b"bpf\0") || value.windows(7).any(|part| part == b"mirred\0")
        })
    };
    Ok(filters.iter().any(takes))
}

/// Closes every interface of a namespace but for the loopback: nothing leaves, whatever road it takes.
///
/// # Errors
/// When the kernel refuses.
pub fn close(netns: &Netns) -> Result<(), Error> {
    change(netns, |netlink, index| {
        let mut bytes = tcmsg(index, ROOT);
        bytes.extend(attribute(KIND, BLACKHOLE));
        netlink.request(Raw { kind: NEW_QDISC, bytes }, NLM_F_CREATE | NLM_F_REPLACE | NLM_F_ACK)
    })
}

/// Undoes [`close`]; success when nothing is closed.
///
/// # Errors
/// When the kernel refuses.
pub fn open(netns: &Netns) -> Result<(), Error> {
    change(netns, |netlink, index| {
        let disciplines = netlink.dump(Raw { kind: GET_QDISC, bytes: tcmsg(index, 0) })?;
        let ours = disciplines.iter().any(|found| {
            found.bytes.get(4..8) == Some(&index.to_ne_bytes())
                && attributes(found.bytes.get(20..).unwrap_or_default())
                    .any(|(kind, value)| kind == KIND && value == BLACKHOLE)
        });
        if !ours {
            return Ok(None);
        }
        netlink.request(Raw { kind: DEL_QDISC, bytes: tcmsg(index, ROOT) }, NLM_F_ACK)
    })
}

fn change(netns: &Netns, work: impl Fn(&Netlink, u32) -> io::Result<Option<Raw>>) -> Result<(), Error> {
    let netlink = Netlink::open(netns, NETLINK_ROUTE)?;
    for link in interfaces(netns)? {
        match work(&netlink, link.index) {
            Err(cause) if !is(&cause, &[Errno::ENODEV, Errno::ENOENT]) => {
                return Err(Error::new("close or open", format!("{} in {}", link.name, netns.id()), cause));
            }
            _ => {}
        }
    }
    Ok(())
}

fn is(error: &io::Error, errnos: &[Errno]) -> bool {
    errnos.iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}
