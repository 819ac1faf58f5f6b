//! The original destination of a redirected datagram. The kernel offers it for TCP sockets only (`SO_ORIGINAL_DST`),
//! so for UDP the conntrack table is queried through netlink; and entries of that table, made and removed. It must not
//! know what the packets carry.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple,
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

mod table;

pub use table::{Flow, forget, track};

/// The conntrack table of one network namespace.
#[derive(Debug)]
pub struct Conntrack {
    socket: Mutex<QuerySocket>,
    netns: String,
}

#[derive(Debug)]
struct QuerySocket {
    netlink: Netlink,
    sequence: u32,
}

impl Conntrack {
    /// Opens the conntrack table of a namespace.
    ///
    /// # Errors
    /// When the kernel lacks `nf_conntrack_netlink` or the namespace cannot be entered.
    pub fn open(netns: &Netns) -> Result<Self, Error> {
        let netlink = Netlink::open(netns, NETLINK_NETFILTER)?;
        Ok(Self { socket: Mutex::new(QuerySocket { netlink, sequence: 0 }), netns: netns.id().to_string() })
    }

    /// The address that a datagram was sent to, which came `from` a client to a socket bound to `at`; it differs from
    /// `at` when the datagram was redirected. `None` when the table has no entry. Does not block: the kernel answers
    /// within `send`.
    ///
    /// # Errors
    /// When the kernel refuses the query; it requires `CAP_NET_ADMIN`.
    pub fn original_udp(&self, from: SocketAddr, at: SocketAddr) -> Result<Option<SocketAddr>, Error> {
        let (from, at) = (canonical(from), canonical(at));
        match self.query(from, at) {
            Ok(found) => Ok(found.map(canonical)),
            Err(cause) if cause.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(None),
            Err(cause) => {
                let what = format!("{from} in {}", self.netns);
                Err(Error::new("look up the original destination of a datagram from", what, cause))
            }
        }
    }

    fn query(&self, from: SocketAddr, at: SocketAddr) -> std::io::Result<Option<SocketAddr>> {
        // A panic leaves at most an answer unread, which the next query skips by its sequence number.
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket.sequence = socket.sequence.wrapping_add(1);
        let sequence = socket.sequence;
        socket.netlink.send(&encode(request(from, at), 0, sequence))?;
        for reply in socket.netlink.pending::<NetfilterMessage>()? {
            if reply.header.sequence_number != sequence {
                continue;
            }
            match reply.payload {
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(message) => return Ok(original(message)),
                _ => {}
            }
        }
        Ok(None)
    }
}

/// Queries the connection by its reply direction, from `at` to `from`: redirection rewrites the destination, so the
/// address that the socket is bound to is known to the reply tuple only. Without a zone in the request the default
/// zone is searched.
fn request(from: SocketAddr, at: SocketAddr) -> NetfilterMessage {
    let family = if from.is_ipv4() { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 };
    let answers = vec![
        Tuple::Ip(vec![IPTuple::SourceAddress(at.ip()), IPTuple::DestinationAddress(from.ip())]),
        Tuple::Proto(vec![
            ProtoTuple::Protocol(Protocol::Udp),
            ProtoTuple::SourcePort(at.port()),
            ProtoTuple::DestinationPort(from.port()),
        ]),
    ];
    let get = ConntrackMessage::Get(vec![ConntrackAttribute::CtaTupleReply(answers)]);
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), get)
}

/// The destination in a connection's original direction, before redirection.
fn original(message: NetfilterMessage) -> Option<SocketAddr> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner else {
        return None;
    };
    let tuple = attributes.into_iter().find_map(|attribute| match attribute {
        ConntrackAttribute::CtaTupleOrig(tuple) => Some(tuple),
        _ => None,
    })?;
    let (_, (_, destination)) = table::ends(&tuple)?;
    Some(destination)
}
