//! Socket addresses in one form, whichever kind of socket reported them.

use std::net::{IpAddr, SocketAddr};

/// An IPv4-mapped IPv6 address (`::ffff:a.b.c.d`, as dual-stack sockets report it) as an IPv4 address.
#[must_use]
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        IpAddr::V4(v4) => (v4, addr.port()).into(),
        IpAddr::V6(_) => addr,
    }
}
