//! Sockets with an address that belongs to the namespace they are made in.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{SockRef, Socket, Type};
use tokio::net::TcpStream;

use super::connect::{dial, options_of};
use super::{ConnectError, Sockets, canonical};
use crate::Error;
use crate::netns::Netns;
use crate::route;

impl Sockets {
    /// Whether an address is one of the namespace's own, by its kernel; `false` when it cannot be asked. Blocks for some
    /// tens of microseconds.
    #[must_use]
    pub fn is_local(&self, address: IpAddr) -> bool {
        let asked = match &self.netns {
            Some(netns) => route::is_local(netns, address),
            None => Netns::current().and_then(|netns| route::is_local(&netns, address)),
        };
        asked.unwrap_or_else(|error| {
            tracing::debug!(%address, %error, "cannot ask whether an address is local, taken for one that is not");
            false
        })
    }

    /// Connects to `to` from an address of the namespace itself, with a port that the kernel chooses.
    ///
    /// # Errors
    /// As [`Sockets::connect`]; [`ConnectError::Setup`] when the address is not local.
    pub async fn connect_from_local(
        &self,
        to: SocketAddr,
        from: IpAddr,
        deadline: Duration,
    ) -> Result<TcpStream, ConnectError> {
        let (to, from) = (canonical(to), SocketAddr::new(from.to_canonical(), 0));
        let socket = self.open(to, Type::STREAM)?;
        bind(&socket, from).map_err(Error::on("use source address", from))?;
        self.set_timing(&SockRef::from(&socket)).map_err(options_of(to))?;
        let stream = dial(socket, to, deadline).await?;
        self.keep_alive(&stream);
        Ok(stream)
    }
}

/// Without a port: the kernel chooses it at `connect`, where it must be unique per destination only.
fn bind(socket: &Socket, from: SocketAddr) -> std::io::Result<()> {
    setsockopt(socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(&from.into())
}
