//! Applies the configured socket options to the socket factory, for every socket of the process.

use isthmus_sys::socket::Sockets;

use crate::config::agent::SocketConfig;

/// Applies keepalive and address family settings. The network namespace stays as it is.
pub(crate) fn apply_socket_options(sockets: Sockets, config: &SocketConfig) -> Sockets {
    sockets.with_keepalive(config.keepalive).with_ipv6(config.ipv6)
}
