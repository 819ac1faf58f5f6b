//! What the kernel knows of one TCP socket (`NETLINK_SOCK_DIAG`). It must not know why one asks.

use std::net::{IpAddr, SocketAddr};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::errno::Errno;

use crate::Error;
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
    match netlink.request(Raw { kind: BY_FAMILY, bytes: query(remote, local) }, 0) {
        Ok(found) => Ok(found.and_then(|message| state(&message.bytes))),
        Err(cause) if cause.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(None),
        Err(cause) => Err(Error::new("look up the socket of", format!("{local} in {}", netns.id()), cause)),
    }
}

/// `struct inet_diag_req_v2`
fn query(remote: SocketAddr, local: SocketAddr) -> Vec<u8> {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    const IPPROTO_TCP: u8 = 6;
    let family = if local.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut bytes = vec![family, IPPROTO_TCP, 0, 0];
    bytes.extend(u32::MAX.to_ne_bytes());
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
    const SYN_RECV: u8 = 3;
    const LISTEN: u8 = 10;
    let kind = match *bytes.get(1)? {
        SYN_RECV => TcpKind::Request,
        LISTEN => TcpKind::Listener,
        _ => TcpKind::Connection,
    };
    let mark = attributes(bytes.get(MESSAGE..)?).find(|(kind, _)| *kind == MARK);
    let mark = mark.and_then(|(_, value)| Some(u32::from_ne_bytes(value.try_into().ok()?)));
    Some(TcpState { kind, mark })
}
