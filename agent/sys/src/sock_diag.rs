//! What the kernel knows of TCP sockets (`NETLINK_SOCK_DIAG`): the one that a segment belongs to, and the connections of a
//! namespace. It must not know why one asks.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::errno::Errno;

use crate::Error;
use crate::address::canonical;
use crate::netlink::{Netlink, Raw, attributes};
use crate::netns::Netns;

/// `SOCK_DIAG_BY_FAMILY` of `linux/sock_diag.h`.
const BY_FAMILY: u16 = 20;
/// Length of `struct inet_diag_msg`.
const MESSAGE: usize = 72;
/// `INET_DIAG_MARK`
const MARK: u16 = 15;

/// A socket, or a connection request that waits for the end of its handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpState {
    /// What it is.
    pub kind: TcpKind,
    /// The mark of the packets it sends (`SO_MARK`); a request has its listener's. `None` without `CAP_NET_ADMIN`.
    pub mark: Option<u32>,
}

/// How far a TCP socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpKind {
    /// A request that a listener has answered.
    Request,
    /// Nothing but the listener of this local address.
    Listener,
    /// A connection.
    Connection,
}

/// The socket of a namespace that would receive a segment from `remote` to `local`; `None` when it would be refused.
///
/// # Errors
/// When the kernel lacks `inet_diag` or the namespace cannot be entered.
pub fn receiver(netns: &Netns, remote: SocketAddr, local: SocketAddr) -> Result<Option<TcpState>, Error> {
    let netlink = Netlink::open(netns, NETLINK_SOCK_DIAG)?;
    match netlink.request(Raw { kind: BY_FAMILY, bytes: query(remote, local, u32::MAX) }, 0) {
        Ok(found) => Ok(found.and_then(|message| state(&message.bytes))),
        Err(cause) if cause.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(None),
        Err(cause) => Err(Error::new("look up the socket of", format!("{local} in {}", netns.id()), cause)),
    }
}

/// A connection of a namespace, open or on the way to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// Its end in the namespace.
    pub local: SocketAddr,
    /// Its other end.
    pub remote: SocketAddr,
    /// Whether something listens where its local end is, so that the remote one has opened it.
    pub accepted: bool,
    /// Its first packet was sent and has not been answered.
    pub unanswered: bool,
    /// All that it was given to send has arrived, and no process has it any more: it only waits for the other end's FIN.
    pub done: bool,
    /// The mark of the packets it sends (`SO_MARK`); `None` without `CAP_NET_ADMIN`.
    pub mark: Option<u32>,
}

/// Numbers of `net/tcp_states.h`.
mod states {
    pub(super) const ESTABLISHED: u8 = 1;
    pub(super) const SYN_SENT: u8 = 2;
    pub(super) const SYN_RECV: u8 = 3;
    pub(super) const FIN_WAIT1: u8 = 4;
    pub(super) const FIN_WAIT2: u8 = 5;
    pub(super) const CLOSE_WAIT: u8 = 8;
    pub(super) const LAST_ACK: u8 = 9;
    pub(super) const LISTEN: u8 = 10;
    pub(super) const CLOSING: u8 = 11;
    pub(super) const NEW_SYN_RECV: u8 = 12;
    /// All but connections that are over.
    pub(super) const WANTED: [u8; 10] = [
        ESTABLISHED,
        SYN_SENT,
        SYN_RECV,
        FIN_WAIT1,
        FIN_WAIT2,
        CLOSE_WAIT,
        LAST_ACK,
        LISTEN,
        CLOSING,
        NEW_SYN_RECV,
    ];
}

/// The TCP connections of a namespace, but for those over loopback addresses and those that are over.
///
/// # Errors
/// When the kernel lacks `inet_diag` or the namespace cannot be entered.
pub fn connections(netns: &Netns) -> Result<Vec<Connection>, Error> {
    let netlink = Netlink::open(netns, NETLINK_SOCK_DIAG)?;
    let wanted = states::WANTED.iter().fold(0, |mask, state| mask | 1_u32 << state);
    let mut sockets = Vec::new();
    for any in [IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
        let any = SocketAddr::new(any, 0);
        let found = netlink.dump(Raw { kind: BY_FAMILY, bytes: query(any, any, wanted) });
        let found = found.map_err(Error::on("list the sockets of", netns.id()))?;
        sockets.extend(found.iter().filter_map(|message| socket(&message.bytes)));
    }
    let listening: HashSet<u16> =
        sockets.iter().filter(|(state, _)| *state == states::LISTEN).map(|(_, at)| at.local.port()).collect();
    let open = sockets
        .into_iter()
        .filter(|(state, found)| *state != states::LISTEN && !found.remote.ip().is_loopback())
        .map(|(_, found)| Connection { accepted: listening.contains(&found.local.port()), ..found });
    Ok(open.collect())
}

/// `struct inet_diag_msg`: state and ends of a socket.
fn socket(bytes: &[u8]) -> Option<(u8, Connection)> {
    let (v6, state) = (*bytes.first()? != AF_INET, *bytes.get(1)?);
    let end = |port: usize, ip: usize| {
        let port = u16::from_be_bytes(bytes.get(port..port + 2)?.try_into().ok()?);
        let ip: IpAddr = if v6 {
            <[u8; 16]>::try_from(bytes.get(ip..ip + 16)?).ok()?.into()
        } else {
            <[u8; 4]>::try_from(bytes.get(ip..ip + 4)?).ok()?.into()
        };
        Some(canonical(SocketAddr::new(ip, port)))
    };
    let orphan = bytes.get(MESSAGE - 4..MESSAGE)? == [0; 4];
    let found = Connection {
        local: end(4, 8)?,
        remote: end(6, 24)?,
        accepted: false,
        unanswered: state == states::SYN_SENT,
        done: orphan && state == states::FIN_WAIT2,
        mark: mark_of(bytes),
    };
    Some((state, found))
}

const AF_INET: u8 = 2;

/// `struct inet_diag_req_v2`
fn query(remote: SocketAddr, local: SocketAddr, states: u32) -> Vec<u8> {
    const AF_INET6: u8 = 10;
    const IPPROTO_TCP: u8 = 6;
    let family = if local.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut bytes = vec![family, IPPROTO_TCP, 0, 0];
    bytes.extend(states.to_ne_bytes());
    bytes.extend(local.port().to_be_bytes());
    bytes.extend(remote.port().to_be_bytes());
    bytes.extend(octets(local.ip()));
    bytes.extend(octets(remote.ip()));
    // Any interface, any cookie.
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend([0xff; 8]);
    bytes
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            bytes
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn state(bytes: &[u8]) -> Option<TcpState> {
    let kind = match *bytes.get(1)? {
        states::SYN_RECV => TcpKind::Request,
        states::LISTEN => TcpKind::Listener,
        _ => TcpKind::Connection,
    };
    Some(TcpState { kind, mark: mark_of(bytes) })
}

fn mark_of(bytes: &[u8]) -> Option<u32> {
    let (_, value) = attributes(bytes.get(MESSAGE..)?).find(|(kind, _)| *kind == MARK)?;
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}
