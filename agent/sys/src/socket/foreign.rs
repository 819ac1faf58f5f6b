//! Connections with a source address that belongs to another host: binding to it, and a source port that its owner
//! does not use.

use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU16, Ordering};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::Socket;

use super::connect_error::ConnectError;
use super::transparent;

/// Source ports that are tried first: above those that a kernel chooses by default (`ip_local_port_range`, 32768 to
/// 60999).
///
/// The owner of the address may connect to the same destination directly. With the same source port the destination's
/// kernel would take both for one connection: the owner's would get no answer, or the agent's would be reset.
const PORTS: RangeInclusive<u16> = 61_000..=65_535;
/// Ports that are tried per connection. A port is in use when a connection to the same destination, or a listener, has
/// it.
const TRIES: usize = 8;

/// The source ports to try for one connection.
pub(super) fn ports() -> impl Iterator<Item = u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = PORTS.end() - PORTS.start() + 1;
    // A counter for the whole process: the least recently used port comes first, and its old connection is most likely
    // out of TIME_WAIT.
    std::iter::repeat_with(move || PORTS.start() + NEXT.fetch_add(1, Ordering::Relaxed) % span).take(TRIES)
}

/// Allows a socket to have an address that is not local (`IP_TRANSPARENT`), and a source port that other connections
/// have, too. With `SO_REUSEADDR` a port must be unique per destination only, as long as every socket of the port has it.
pub(super) fn prepare(socket: &Socket, v6: bool) -> io::Result<()> {
    transparent::set(socket, v6)?;
    socket.set_reuse_address(true)
}

/// Binds a prepared socket to an address that need not be local. With port 0 the kernel chooses the port at `connect`
/// (`IP_BIND_ADDRESS_NO_PORT`), where it must be unique per destination only.
pub(super) fn bind(socket: &Socket, from: SocketAddr) -> io::Result<()> {
    if from.port() == 0 {
        setsockopt(socket, sockopt::IpBindAddressNoPort, &true)?;
    }
    socket.bind(&from.into())
}

/// Whether a connection failed because of its source port, so that another one may succeed.
pub(super) fn is_port_in_use(error: &ConnectError) -> bool {
    let in_use = |kind| matches!(kind, io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable);
    match error {
        ConnectError::Setup(error) => in_use(error.cause().kind()),
        ConnectError::Other { cause, .. } => in_use(cause.kind()),
        ConnectError::Timeout { .. } | ConnectError::Refused { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_ports_stay_in_their_range() {
        for _ in 0..20_000 {
            assert!(ports().all(|port| PORTS.contains(&port)));
        }
        let (one, other): (Vec<_>, Vec<_>) = (ports().collect(), ports().collect());
        assert!(one.iter().all(|port| !other.contains(port)), "{one:?} {other:?}");
    }

    #[test]
    fn only_a_port_in_use_is_retried_with_another() {
        let to = SocketAddr::from(([127, 0, 0, 1], 1));
        let other = |kind: io::ErrorKind| is_port_in_use(&ConnectError::Other { to, cause: kind.into() });
        assert!(other(io::ErrorKind::AddrInUse) && other(io::ErrorKind::AddrNotAvailable));
        assert!(!other(io::ErrorKind::HostUnreachable) && !is_port_in_use(&ConnectError::Refused { to }));
    }
}
