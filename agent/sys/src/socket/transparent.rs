//! `IP_TRANSPARENT`: listening on, and connecting from, addresses that are not local.

use std::io;

use socket2::Socket;

/// Makes a socket transparent. Requires `CAP_NET_ADMIN`.
pub(super) fn set(socket: &Socket, v6: bool) -> io::Result<()> {
    if v6 { socket.set_ip_transparent_v6(true) } else { socket.set_ip_transparent_v4(true) }
}
