//! Notifications of a namespace's changes: nftables, links, addresses, routes, routing rules and traffic control. They
//! say that something has changed, not what: a lost one is a change too.

#![allow(unsafe_code, reason = "the runtime asks for a promise about the descriptor, which the socket keeps")]

use std::io;
use std::os::fd::AsRawFd as _;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use tokio::io::unix::AsyncFd;

use crate::Error;
use crate::netns::Netns;

/// `NFNLGRP_NFTABLES`
const NFTABLES: u32 = 7;
/// `RTNLGRP_LINK`, `_TC`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV4_RULE`, `_IPV6_IFADDR`, `_IPV6_ROUTE`, `_IPV6_RULE`
const ROUTE: [u32; 8] = [1, 4, 5, 7, 8, 9, 11, 19];

/// A subscription to a namespace's changes.
#[derive(Debug)]
pub struct Changes {
    nftables: AsyncFd<Socket>,
    route: AsyncFd<Socket>,
}

impl Changes {
    /// Subscribes. Must be called within a runtime.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the kernel refuses.
    pub fn subscribe(netns: &Netns) -> Result<Self, Error> {
        let failed = || Error::on("subscribe to changes of", netns.id());
        let open = |protocol, groups: &[u32]| -> Result<AsyncFd<Socket>, Error> {
            let mut socket = netns.run(|| Socket::new(protocol))?.map_err(failed())?;
            socket.bind(&SocketAddr::new(0, 0)).map_err(failed())?;
            groups.iter().try_for_each(|group| socket.add_membership(*group)).map_err(failed())?;
            socket.set_non_blocking(true).map_err(failed())?;
            // SAFETY: the socket owns its descriptor, and only its drop closes it.
            unsafe { AsyncFd::register(socket) }.map_err(|error| failed()(io::Error::from(error)))
        };
        Ok(Self { nftables: open(NETLINK_NETFILTER, &[NFTABLES])?, route: open(NETLINK_ROUTE, &ROUTE)? })
    }

    /// Resolves when something has changed since the last call, and forgets everything that has.
    pub async fn changed(&mut self) {
        let ready = tokio::select! {
            ready = self.nftables.readable_mut() => ready.map(drop),
            ready = self.route.readable_mut() => ready.map(drop),
        };
        if ready.is_err() {
            // The runtime ends.
            return std::future::pending().await;
        }
        drain(&mut self.nftables);
        drain(&mut self.route);
    }
}

/// Reads until the kernel has nothing more. An overflow (`ENOBUFS`) is a lost notification: also a change.
fn drain(socket: &mut AsyncFd<Socket>) {
    let mut buffer = Vec::with_capacity(64 << 10);
    loop {
        buffer.clear();
        match socket.get_ref().recv(&mut buffer, 0) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                tracing::debug!(fd = socket.as_raw_fd(), %error, "notifications lost, counted as a change");
            }
            _ => {}
        }
    }
    // Nothing is left: the next readiness is a new notification.
    if let Some(Ok(mut guard)) = futures_util::FutureExt::now_or_never(socket.readable()) {
        guard.clear_ready();
    }
}
