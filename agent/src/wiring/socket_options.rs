//! The socket options that this process is configured with, for every socket that it makes.

use isthmus_sys::socket::Sockets;

use crate::config::agent::SocketConfig;

/// Applies keepalive and address family settings. The caller moves the sockets of a pod into the pod's namespace.
pub(crate) fn apply_socket_options(sockets: Sockets, config: &SocketConfig) -> Sockets {
    sockets.with_keepalive(config.keepalive).with_ipv6(config.ipv6)
}
