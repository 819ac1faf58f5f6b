//! The cookie of a network namespace: a number that the kernel gives to no other namespace until it reboots, unlike an
//! inode number, which is reused.
#![allow(
    unsafe_code,
    reason = "the macro of nix declares a socket option; the option's value is a plain integer"
)]

use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket};
use nix::{getsockopt_impl, libc, sockopt_impl};

use super::Netns;

/// `SO_NETNS_COOKIE` of `asm-generic/socket.h`, since Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

sockopt_impl!(
    /// The cookie of the namespace that the socket is in.
    Cookie,
    GetOnly,
    libc::SOL_SOCKET,
    SO_NETNS_COOKIE,
    u64
);

impl Netns {
    /// The namespace's cookie; `None` when it cannot be entered, or before Linux 5.14.
    #[must_use]
    pub fn cookie(&self) -> Option<u64> {
        let open = || socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
        let socket = self.run(open).ok()?.ok()?;
        getsockopt(&socket, Cookie).ok()
    }
}
