//! Entries of the conntrack table that are made and removed by hand: of TCP connections that began before their namespace
//! was tracked, and of those that a rule which is gone has redirected.

use std::io;
use std::net::SocketAddr;

use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NetlinkPayload};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Protocol, Status,
    Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use crate::Error;
use crate::address::canonical;
use crate::netlink::{Netlink, encode};
use crate::netns::Netns;
use crate::sock_diag::Connection;

/// The kernel's default for an established connection (`nf_conntrack_tcp_timeout_established`), in seconds. Packets set
/// it anew.
const IDLE: u32 = 5 * 24 * 60 * 60;
/// How long a connection whose first packet was sent may wait for an answer, in seconds.
const UNANSWERED: u32 = 120;

/// `enum tcp_conntrack`
mod state {
    pub(super) const SYN_SENT: u8 = 1;
    pub(super) const ESTABLISHED: u8 = 3;
}
/// `IP_CT_TCP_FLAG_BE_LIBERAL`, as value and mask: sequence numbers are not judged, since none are known.
const LIBERAL: [u8; 2] = [0x08, 0x08];
/// `CTA_PROTOINFO_TCP_FLAGS_ORIGINAL` and `CTA_PROTOINFO_TCP_FLAGS_REPLY`
const FLAGS: [u16; 2] = [4, 5];

/// One entry, as far as its owner may care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// UDP, not TCP. Other protocols are left out.
    pub udp: bool,
    /// Where its first packet came from and was sent to.
    pub original: (SocketAddr, SocketAddr),
    /// Where answers come from and go to. Differs from the reverse of `original` when addresses are translated.
    pub reply: (SocketAddr, SocketAddr),
    /// Its mark.
    pub mark: u32,
}

/// Marks the entry of each connection, unless it has a mark within `mask`; one that has no entry gets one, as if it had been
/// tracked from its beginning. Returns how many are marked. The namespace must have a rule that needs conntrack: without one
/// nothing is tracked.
///
/// # Errors
/// When the kernel lacks `nf_conntrack_netlink`, its table is full, or it refuses.
pub fn track(netns: &Netns, connections: &[Connection], mark: u32, mask: u32) -> Result<usize, Error> {
    let failed = || Error::on("track connections of", netns.id());
    let netlink = Netlink::open(netns, NETLINK_NETFILTER)?;
    let mut marked = 0;
    for connection in connections {
        let message = netfilter(connection.local, ConntrackMessage::New(entry(connection, mark)));
        match command(&netlink, message, NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => marked += 1,
            Err(error) if error.raw_os_error() == Some(Errno::EEXIST as i32) => {
                let set = mark_known(&netlink, connection, mark, mask).map_err(failed())?;
                marked += usize::from(set);
            }
            Err(error) => return Err(failed()(error)),
        }
    }
    Ok(marked)
}

/// Marks the entry of a connection. Whether it is there and had no mark.
fn mark_known(netlink: &Netlink, of: &Connection, mark: u32, mask: u32) -> io::Result<bool> {
    let tuple = tuple(of.local, of.remote);
    let get = ConntrackMessage::Get(vec![ConntrackAttribute::CtaTupleOrig(tuple.clone())]);
    netlink.send(&encode(netfilter(of.local, get), 0, 1))?;
    let answers = netlink.pending::<NetfilterMessage>()?.into_iter();
    let entry = answers.filter_map(|answer| match answer.payload {
        NetlinkPayload::InnerMessage(message) => found(message),
        // It has ended meanwhile, or has the same answers as one of a zone.
        _ => None,
    });
    let Some(flow) = entry.filter_map(|attributes| flow(&attributes)).next() else { return Ok(false) };
    if flow.mark & mask != 0 {
        return Ok(false);
    }
    let change = vec![ConntrackAttribute::CtaTupleOrig(tuple), ConntrackAttribute::CtaMark(flow.mark | mark)];
    match command(netlink, netfilter(of.local, ConntrackMessage::New(change)), 0) {
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(false),
        done => done.map(|()| true),
    }
}

/// Removes the entries that `is_gone` selects. Their next packets begin new ones.
///
/// # Errors
/// When the kernel lacks `nf_conntrack_netlink` or refuses.
pub fn forget(netns: &Netns, is_gone: impl Fn(&Flow) -> bool) -> Result<(), Error> {
    let failed = || Error::on("remove tracked connections of", netns.id());
    let netlink = Netlink::open(netns, NETLINK_NETFILTER)?;
    for family in [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6] {
        let all = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), ConntrackMessage::Get(vec![]));
        for attributes in netlink.dump(all).map_err(failed())?.into_iter().filter_map(found) {
            let Some(flow) = flow(&attributes).filter(&is_gone) else { continue };
            let message = netfilter(flow.original.0, ConntrackMessage::Delete(identity(attributes)));
            match command(&netlink, message, 0) {
                Err(error) if error.raw_os_error() != Some(Errno::ENOENT as i32) => {
                    return Err(failed()(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
    }
    Ok(())
}

fn entry(connection: &Connection, mark: u32) -> Vec<ConntrackAttribute> {
    let Connection { local, remote, .. } = *connection;
    let (from, to) = if connection.accepted { (remote, local) } else { (local, remote) };
    let (state, status, timeout) = if connection.unanswered {
        (state::SYN_SENT, Status::Confirmed, UNANSWERED)
    } else {
        (state::ESTABLISHED, Status::Confirmed | Status::SeenReply | Status::Assured, IDLE)
    };
    let mut tcp = vec![ProtoInfoTCP::State(state)];
    tcp.extend(FLAGS.map(|kind| ProtoInfoTCP::Other(DefaultNla::new(kind, LIBERAL.to_vec()))));
    vec![
        ConntrackAttribute::CtaTupleOrig(tuple(from, to)),
        ConntrackAttribute::CtaTupleReply(tuple(to, from)),
        ConntrackAttribute::CtaStatus(status),
        ConntrackAttribute::CtaTimeout(timeout),
        ConntrackAttribute::CtaMark(mark),
        ConntrackAttribute::CtaProtoInfo(vec![ProtoInfo::TCP(tcp)]),
    ]
}

fn tuple(from: SocketAddr, to: SocketAddr) -> Vec<Tuple> {
    vec![
        Tuple::Ip(vec![IPTuple::SourceAddress(from.ip()), IPTuple::DestinationAddress(to.ip())]),
        Tuple::Proto(vec![
            ProtoTuple::Protocol(Protocol::Tcp),
            ProtoTuple::SourcePort(from.port()),
            ProtoTuple::DestinationPort(to.port()),
        ]),
    ]
}

/// `CTA_ID`, which tells an entry from another one of the same addresses and ports.
const ID: u16 = 12;
/// `CTA_ZONE`
const ZONE: u16 = 18;

/// What of an entry names it in a request.
fn identity(attributes: Vec<ConntrackAttribute>) -> Vec<ConntrackAttribute> {
    use netlink_packet_core::Nla as _;
    let names = |attribute: &ConntrackAttribute| match attribute {
        ConntrackAttribute::CtaTupleOrig(_) => true,
        other => [ID, ZONE].contains(&other.kind()),
    };
    attributes.into_iter().filter(names).collect()
}

fn flow(attributes: &[ConntrackAttribute]) -> Option<Flow> {
    let mut flow = (None, None, 0);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => flow.0 = ends(tuple),
            ConntrackAttribute::CtaTupleReply(tuple) => flow.1 = ends(tuple),
            ConntrackAttribute::CtaMark(mark) => flow.2 = *mark,
            _ => {}
        }
    }
    let ((udp, original), (_, reply), mark) = (flow.0?, flow.1?, flow.2);
    Some(Flow { udp, original, reply, mark })
}

/// Source and destination of a tuple, and whether they are UDP's; `None` for protocols other than TCP and UDP.
pub(super) fn ends(tuple: &[Tuple]) -> Option<(bool, (SocketAddr, SocketAddr))> {
    let (mut ips, mut ports, mut udp) = ((None, None), (None, None), None);
    for part in tuple {
        match part {
            Tuple::Ip(parts) => parts.iter().for_each(|part| match part {
                IPTuple::SourceAddress(ip) => ips.0 = Some(*ip),
                IPTuple::DestinationAddress(ip) => ips.1 = Some(*ip),
                _ => {}
            }),
            Tuple::Proto(parts) => parts.iter().for_each(|part| match part {
                ProtoTuple::Protocol(Protocol::Udp) => udp = Some(true),
                ProtoTuple::Protocol(Protocol::Tcp) => udp = Some(false),
                ProtoTuple::SourcePort(port) => ports.0 = Some(*port),
                ProtoTuple::DestinationPort(port) => ports.1 = Some(*port),
                _ => {}
            }),
            _ => {}
        }
    }
    let end = |ip: Option<std::net::IpAddr>, port: Option<u16>| Some(canonical(SocketAddr::new(ip?, port?)));
    Some((udp?, (end(ips.0, ports.0)?, end(ips.1, ports.1)?)))
}

fn netfilter(of: SocketAddr, message: ConntrackMessage) -> NetfilterMessage {
    let family = if of.is_ipv4() { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 };
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message)
}

fn found(message: NetfilterMessage) -> Option<Vec<ConntrackAttribute>> {
    match message.inner {
        NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) => Some(attributes),
        _ => None,
    }
}

fn command(netlink: &Netlink, message: NetfilterMessage, flags: u16) -> io::Result<()> {
    netlink.send(&encode(message, flags | NLM_F_ACK, 1))?;
    for reply in netlink.pending::<NetfilterMessage>()? {
        if let NetlinkPayload::Error(error) = reply.payload
            && error.code.is_some()
        {
            return Err(error.to_io());
        }
    }
    Ok(())
}
