//! Outgoing connections: their source address and port, their options, and how it is known that they are established.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Weak;
use std::time::Duration;

use nix::errno::Errno;
use socket2::{SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::{ConnectError, Sockets, canonical, foreign};
use crate::Error;

/// Age at which a connection to an application gets its keepalive, if its keepalive time is not shorter: most connections
/// are closed before.
const YOUNG: Duration = Duration::from_secs(30);

impl Sockets {
    /// Connects to `to`, with `from` as the source address even when it is not local. If `from` is the destination's
    /// own address it is ignored: a host does not answer packets that come from itself.
    ///
    /// # Errors
    /// When the source cannot be used, the peer does not answer within `deadline`, or the kernel or the peer refuses.
    pub async fn connect(
        &self,
        to: SocketAddr,
        from: Option<IpAddr>,
        deadline: Duration,
    ) -> Result<TcpStream, ConnectError> {
        let stream = self.connect_young(to, from, deadline).await?;
        self.keep_alive(&stream);
        Ok(stream)
    }

    /// Like [`Sockets::connect`], without keepalive: for connections that may be short. Follow it with
    /// [`Sockets::keep_alive`] or [`Sockets::keep_alive_when_old`].
    ///
    /// # Errors
    /// As [`Sockets::connect`].
    pub async fn connect_young(
        &self,
        to: SocketAddr,
        from: Option<IpAddr>,
        deadline: Duration,
    ) -> Result<TcpStream, ConnectError> {
        let to = canonical(to);
        let Some(from) = from.map(|ip| ip.to_canonical()).filter(|from| *from != to.ip()) else {
            let socket = self.open(to, Type::STREAM)?;
            self.set_timing(&SockRef::from(&socket)).map_err(options_of(to))?;
            return dial(socket, to, deadline).await;
        };
        for port in foreign::ports() {
            match self.dial_from(to, SocketAddr::new(from, port), deadline).await {
                Err(error) if foreign::is_port_in_use(&error) => {}
                done => return done,
            }
        }
        self.dial_from(to, SocketAddr::new(from, 0), deadline).await
    }

    /// Turns on the keepalive of a connection from [`Sockets::connect_young`].
    pub fn keep_alive(&self, stream: &impl AsFd) {
        if let Err(error) = self.set_keepalive(&SockRef::from(stream)) {
            tracing::debug!(%error, "keepalive not set, a vanished peer is noticed when data is sent");
        }
    }

    /// Turns on the keepalive of a connection from [`Sockets::connect_young`] once it is no longer young, which is before
    /// the first probe is due: the kernel counts from the last packet, not from when it is set. Never completes, and does
    /// not keep the connection open.
    pub async fn keep_alive_when_old(&self, stream: Weak<TcpStream>) {
        if let Some(keepalive) = self.keepalive {
            tokio::time::sleep(keepalive.time.min(YOUNG)).await;
            if let Some(stream) = stream.upgrade() {
                self.keep_alive(&stream);
            }
        }
        std::future::pending().await
    }

    async fn dial_from(
        &self,
        to: SocketAddr,
        from: SocketAddr,
        deadline: Duration,
    ) -> Result<TcpStream, ConnectError> {
        let socket = self.foreign(to)?;
        foreign::bind(&socket, from).map_err(Error::on("use source address", from))?;
        dial(socket, to, deadline).await
    }

    /// Sets the options of a socket that will have a foreign source address.
    pub(super) fn prepare_foreign(&self, socket: Socket, to: SocketAddr) -> Result<Socket, Error> {
        self.set_mark(&socket, to)?;
        foreign::prepare(&socket, to.is_ipv6())
            .map_err(Error::on("allow a foreign source address to", to))?;
        self.set_timing(&SockRef::from(&socket)).map_err(options_of(to))?;
        Ok(socket)
    }
}

pub(super) fn options_of(to: SocketAddr) -> impl FnOnce(io::Error) -> Error {
    Error::on("set options of connection to", to)
}

/// Connects a prepared socket.
pub(super) async fn dial(
    socket: Socket,
    to: SocketAddr,
    deadline: Duration,
) -> Result<TcpStream, ConnectError> {
    match socket.connect(&to.into()) {
        Err(cause) if cause.raw_os_error() != Some(Errno::EINPROGRESS as i32) => {
            return Err(ConnectError::from_io(to, cause));
        }
        Ok(()) | Err(_) => {}
    }
    let stream = TcpStream::from_std(socket.into()).map_err(Error::on("register connection to", to))?;
    match tokio::time::timeout(deadline, established(&stream)).await {
        Err(_) => Err(ConnectError::Timeout { to, after: deadline }),
        Ok(Err(cause)) => Err(ConnectError::from_io(to, cause)),
        Ok(Ok(())) => Ok(stream),
    }
}

/// Waits for the end of `connect`. A failed one is reported together with the readiness, so that success need not be asked
/// for.
async fn established(stream: &TcpStream) -> io::Result<()> {
    let ready = stream.ready(Interest::WRITABLE | Interest::ERROR).await?;
    if ready.is_error() || ready.is_write_closed() {
        return stream.take_error()?.map_or(Ok(()), Err);
    }
    Ok(())
}
