//! A server whose accept queue is full: the kernel drops the SYNs of further clients.

use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket, sockopt,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::script::{PATIENCE, Road};

/// The mark of sockets that the pod's packet rules leave alone.
const OURS: u32 = 0x539;

/// A server whose accept queue is full with one connection; SYNs of further clients are dropped.
pub(crate) struct Full {
    listener: TcpListener,
    _first: TcpStream,
}

impl Full {
    /// At the server's end of a road.
    pub(crate) async fn new(road: &Road, port: u16) -> Result<Self> {
        let at = road.here(port);
        let SocketAddr::V4(address) = at else { bail!("{at}: only IPv4 here") };
        let make = || -> Result<std::net::TcpListener> {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
            setsockopt(&fd, sockopt::ReuseAddr, &true)?;
            bind(fd.as_raw_fd(), &SockaddrIn::from(address))?;
            listen(&fd, Backlog::new(0)?)?;
            Ok(fd.into())
        };
        let listener = TcpListener::from_std(road.server.netns.run(make)??)?;
        let ours = road.server.sockets().clone().with_mark(Some(OURS));
        let first = ours.connect(at, None, PATIENCE).await.context("filling the queue")?;
        Ok(Self { listener, _first: first })
    }

    /// Accepts the queued connection; returns whether another client connects then.
    pub(crate) async fn emptied(&self) -> Result<bool> {
        timeout(PATIENCE, self.listener.accept()).await.context("the first connection is not queued")??;
        // A client that still waits retransmits its SYN after 1 s, 2 s or 4 s.
        Ok(timeout(Duration::from_secs(3), self.listener.accept()).await.is_ok())
    }
}
