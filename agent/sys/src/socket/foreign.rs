//! Connections that borrow an address: their source port, which must not be one that the address's owner uses too.

use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU16, Ordering};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::Socket;

use super::{ConnectError, set_transparent};

/// Ports that are tried first: beyond those that a kernel chooses for its own connections (32768 to 60999, unless
/// somebody set it otherwise).
///
/// A connection that the owner makes to the same destination by itself may arrive where ours is. With the same source
/// port the kernel there would take the two for one: the owner's would never be answered, or ours be reset.
const PORTS: RangeInclusive<u16> = 61_000..=65_535;
/// How many of them. One is taken when a connection to the same destination has it, or a listener.
const TRIES: usize = 8;

/// Ports to try, one after the other.
pub(super) fn ports() -> impl Iterator<Item = u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = PORTS.end() - PORTS.start() + 1;
    // One after the other in the whole process: the one that was given up longest ago comes first.
    std::iter::repeat_with(move || PORTS.start() + NEXT.fetch_add(1, Ordering::Relaxed) % span).take(TRIES)
}

/// Binds to an address that need not be ours. Port 0 leaves the port to `connect`, which then only has to be unique per
/// destination; so does any other, as long as all who use it agree to share it.
pub(super) fn bind(socket: &Socket, from: SocketAddr) -> io::Result<()> {
    set_transparent(socket, from.is_ipv6())?;
    if from.is_ipv6() {
        socket.set_freebind_v6(true)?;
    } else {
        socket.set_freebind_v4(true)?;
    }
    if from.port() == 0 {
        setsockopt(socket, sockopt::IpBindAddressNoPort, &true)?;
    } else {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&from.into())
}

/// Whether another port may do.
pub(super) fn is_taken(error: &ConnectError) -> bool {
    let taken = |kind| matches!(kind, io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable);
    match error {
        ConnectError::Setup(error) => taken(error.cause().kind()),
        ConnectError::Other { cause, .. } => taken(cause.kind()),
        ConnectError::Timeout { .. } | ConnectError::Refused { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_stay_in_their_range_for_ever() {
        for _ in 0..20_000 {
            assert!(ports().all(|port| PORTS.contains(&port)));
        }
        let (one, other): (Vec<_>, Vec<_>) = (ports().collect(), ports().collect());
        assert!(one.iter().all(|port| !other.contains(port)), "{one:?} {other:?}");
    }

    #[test]
    fn only_a_taken_port_is_a_reason_for_another() {
        let to = SocketAddr::from(([127, 0, 0, 1], 1));
        let other = |kind: io::ErrorKind| is_taken(&ConnectError::Other { to, cause: kind.into() });
        assert!(other(io::ErrorKind::AddrInUse) && other(io::ErrorKind::AddrNotAvailable));
        assert!(!other(io::ErrorKind::HostUnreachable) && !is_taken(&ConnectError::Refused { to }));
    }
}
