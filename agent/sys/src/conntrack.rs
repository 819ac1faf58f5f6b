//! Where a datagram was going before it was redirected. A TCP socket remembers that (`SO_ORIGINAL_DST`); a UDP socket
//! does not, so the kernel's connection table is asked, through netlink. It must not know what the datagrams are.

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

/// The connection table of one namespace.
#[derive(Debug)]
pub struct Conntrack {
    asked: Mutex<Asked>,
    netns: String,
}

#[derive(Debug)]
struct Asked {
    netlink: Netlink,
    sequence: u32,
}

impl Conntrack {
    /// Opens the table of a namespace.
    ///
    /// # Errors
    /// When the kernel has no netlink for it or the namespace cannot be entered.
    pub fn open(netns: &Netns) -> Result<Self, Error> {
        let netlink = Netlink::open(netns, NETLINK_NETFILTER)?;
        Ok(Self { asked: Mutex::new(Asked { netlink, sequence: 0 }), netns: netns.id().to_string() })
    }

    /// Where a datagram was sent that came `from` there to a socket bound to `at`: another address than `at` when it was
    /// redirected. `None` when the table does not hold it. The kernel answers at once; nothing is waited for.
    ///
    /// # Errors
    /// When the kernel refuses to say: it wants `CAP_NET_ADMIN`.
    pub fn original_udp(&self, from: SocketAddr, at: SocketAddr) -> Result<Option<SocketAddr>, Error> {
        let (from, at) = (canonical(from), canonical(at));
        match self.ask(from, at) {
            Ok(found) => Ok(found.map(canonical)),
            Err(cause) if cause.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(None),
            Err(cause) => {
                let what = format!("{from} in {}", self.netns);
                Err(Error::new("look up the original destination of a datagram from", what, cause))
            }
        }
    }

    fn ask(&self, from: SocketAddr, at: SocketAddr) -> std::io::Result<Option<SocketAddr>> {
        // A panic in here leaves at most an answer unread, which the next one skips.
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.sequence = asked.sequence.wrapping_add(1);
        let sequence = asked.sequence;
        asked.netlink.send(&encode(request(from, at), 0, sequence))?;
        for reply in asked.netlink.pending::<NetfilterMessage>()? {
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

/// Asks for the connection whose answers go from `at` to `from`. Without a zone in the request it is the default one.
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

/// The destination of a connection as its first packet had it.
fn original(message: NetfilterMessage) -> Option<SocketAddr> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner else {
        return None;
    };
    let tuple = attributes.into_iter().find_map(|attribute| match attribute {
        ConntrackAttribute::CtaTupleOrig(tuple) => Some(tuple),
        _ => None,
    })?;
    let (mut ip, mut port) = (None, None);
    for part in tuple {
        match part {
            Tuple::Ip(parts) => parts.into_iter().for_each(|part| {
                if let IPTuple::DestinationAddress(address) = part {
                    ip = Some(address);
                }
            }),
            Tuple::Proto(parts) => parts.into_iter().for_each(|part| {
                if let ProtoTuple::DestinationPort(found) = part {
                    port = Some(found);
                }
            }),
            _ => {}
        }
    }
    Some(SocketAddr::new(ip?, port?))
}
