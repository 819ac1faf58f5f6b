//! Sockets that are made inside a pod's network namespace and used by the agent outside of it: a factory ([`Sockets`])
//! with the namespace and the options (mark, keepalive, transparency), and the original destination of redirected
//! connections. It must not know what the connections carry.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::Error;
use crate::conntrack::Conntrack;
use crate::netns::Netns;

mod congestion;
mod connect;
mod connect_error;
mod foreign;
mod local;
mod spare;
mod transparent;

pub use crate::address::canonical;
use congestion::Congestion;
pub use congestion::LocalCongestion;
pub use connect_error::ConnectError;
use spare::Spares;

/// Accept backlog of listeners.
const BACKLOG: i32 = 1024;

/// TCP keepalive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Idle time before the first probe (`TCP_KEEPIDLE`).
    pub time: Duration,
    /// Time between probes (`TCP_KEEPINTVL`).
    pub interval: Duration,
    /// Unanswered probes after which the connection is closed (`TCP_KEEPCNT`).
    pub retries: u32,
    /// Also close a connection whose sent data stays unacknowledged for as long as the probes would take
    /// (`TCP_USER_TIMEOUT`); without it only idle connections are probed.
    pub user_timeout: bool,
}

impl Default for Keepalive {
    fn default() -> Self {
        let step = Duration::from_secs(180);
        Self { time: step, interval: step, retries: 9, user_timeout: false }
    }
}

/// Whether a listener accepts connections to addresses that are not local (`IP_TRANSPARENT`; requires `CAP_NET_ADMIN`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transparent {
    /// It does not.
    Never,
    /// If the process has the capability; otherwise without.
    BestEffort,
    /// Without the capability, listening fails.
    Required,
}

/// A socket factory: the network namespace and options of the sockets it makes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sockets {
    netns: Option<Arc<Netns>>,
    mark: Option<u32>,
    /// That of [`Sockets::to_applications`].
    application_mark: Option<u32>,
    reuse_port: bool,
    keepalive: Option<Keepalive>,
    ipv6: bool,
    spares: Option<Arc<Spares>>,
    congestion: Option<Congestion>,
    /// That of [`Sockets::local`].
    local_congestion: Option<Congestion>,
}

impl Sockets {
    /// Makes sockets in the calling thread's namespace, without a mark, with the default keepalive.
    #[must_use]
    pub fn host() -> Self {
        Self {
            netns: None,
            mark: None,
            application_mark: None,
            reuse_port: false,
            keepalive: Some(Keepalive::default()),
            ipv6: true,
            spares: None,
            congestion: None,
            local_congestion: None,
        }
    }

    /// Makes sockets inside a network namespace.
    #[must_use]
    pub fn in_netns(netns: Arc<Netns>) -> Self {
        Self { netns: Some(netns), ..Self::host() }
    }

    /// Marks every socket (`SO_MARK`; requires `CAP_NET_ADMIN`). Accepted connections inherit the listener's mark.
    #[must_use]
    pub fn with_mark(self, mark: Option<u32>) -> Self {
        Self { mark, ..self }
    }

    /// The mark of [`Sockets::to_applications`], where it is another.
    #[must_use]
    pub fn with_application_mark(self, mark: Option<u32>) -> Self {
        Self { application_mark: mark, ..self }
    }

    /// The factory for connections to applications of the namespace, with marks of their own.
    #[must_use]
    pub fn to_applications(&self) -> Self {
        Self { mark: self.application_mark.or(self.mark), ..self.local() }
    }

    /// Lets several listeners share a port (`SO_REUSEPORT`), so that a new agent binds while its predecessor still
    /// drains.
    #[must_use]
    pub fn with_reuse_port(self, reuse_port: bool) -> Self {
        Self { reuse_port, ..self }
    }

    /// Keepalive of outgoing and accepted connections; `None` turns it off.
    #[must_use]
    pub fn with_keepalive(self, keepalive: Option<Keepalive>) -> Self {
        Self { keepalive, ..self }
    }

    /// Whether wildcard listeners are dual stack.
    #[must_use]
    pub fn with_ipv6(self, ipv6: bool) -> Self {
        Self { ipv6, ..self }
    }

    /// Makes sockets of connections to applications before they are needed, while there are such connections; see
    /// [`Sockets::drop_idle_spares`]. Clones share them.
    #[must_use]
    pub fn with_spares(self) -> Self {
        Self { spares: Some(Arc::default()), ..self }
    }

    /// Whether wildcard listeners are dual stack.
    #[must_use]
    pub fn ipv6(&self) -> bool {
        self.ipv6
    }

    /// Listens on an address. Must be called inside a runtime. The second value says whether the listener is
    /// transparent.
    ///
    /// # Errors
    /// When the socket cannot be made, marked or bound, or transparency was required and is not allowed.
    pub fn listen(&self, addr: SocketAddr, transparent: Transparent) -> Result<(TcpListener, bool), Error> {
        let failed = |step| Error::on(step, addr);
        let socket = self.open(addr, Type::STREAM)?;
        socket.set_reuse_address(true).map_err(failed("set SO_REUSEADDR on listener"))?;
        if self.reuse_port {
            socket.set_reuse_port(true).map_err(failed("set SO_REUSEPORT on listener"))?;
        }
        let is_transparent = match transparent {
            Transparent::Never => false,
            Transparent::BestEffort => transparent::set(&socket, addr.is_ipv6()).is_ok(),
            Transparent::Required => {
                transparent::set(&socket, addr.is_ipv6())
                    .map_err(failed("make transparent the listener on"))?;
                true
            }
        };
        // Accepted connections inherit them.
        let inherited = SockRef::from(&socket);
        let set = self.set_timing(&inherited).and_then(|()| self.set_keepalive(&inherited));
        set.map_err(failed("set options of listener on"))?;
        socket.bind(&addr.into()).map_err(failed("bind"))?;
        socket.listen(BACKLOG).map_err(failed("listen on"))?;
        let listener = TcpListener::from_std(socket.into()).map_err(failed("register listener"))?;
        Ok((listener, is_transparent))
    }

    /// Listens on a port of every address: dual stack where IPv6 is enabled and available, otherwise IPv4 only. Must
    /// be called inside a runtime.
    ///
    /// # Errors
    /// As [`Sockets::listen`].
    pub fn listen_wildcard(&self, port: u16, transparent: Transparent) -> Result<(TcpListener, bool), Error> {
        use nix::errno::Errno;
        if self.ipv6 {
            match self.listen((Ipv6Addr::UNSPECIFIED, port).into(), transparent) {
                Err(e) if e.is(Errno::EAFNOSUPPORT) || e.is(Errno::EADDRNOTAVAIL) => {
                    tracing::debug!(port, error = %e, "no IPv6 in this network namespace, listening on IPv4 only");
                }
                done => return done,
            }
        }
        self.listen((Ipv4Addr::UNSPECIFIED, port).into(), transparent)
    }

    /// A UDP socket bound to an address. Must be called inside a runtime.
    ///
    /// # Errors
    /// When the socket cannot be made, marked or bound.
    pub fn udp(&self, addr: SocketAddr) -> Result<UdpSocket, Error> {
        let socket = self.open(addr, Type::DGRAM)?;
        if self.reuse_port {
            socket.set_reuse_port(true).map_err(Error::on("set SO_REUSEPORT on", addr))?;
        }
        socket.bind(&addr.into()).map_err(Error::on("bind UDP", addr))?;
        UdpSocket::from_std(socket.into()).map_err(Error::on("register UDP socket", addr))
    }

    /// The conntrack table of the namespace that the sockets are made in.
    ///
    /// # Errors
    /// As [`Conntrack::open`].
    pub fn conntrack(&self) -> Result<Conntrack, Error> {
        match &self.netns {
            Some(netns) => Conntrack::open(netns),
            None => Conntrack::open(&Netns::current()?),
        }
    }

    /// What a connection needs from its first byte on.
    fn set_timing(&self, socket: &SockRef<'_>) -> io::Result<()> {
        socket.set_tcp_nodelay(true)?;
        if let Some(congestion) = &self.congestion {
            congestion.set(socket)?;
        }
        if let Some(Keepalive { time, interval, retries, user_timeout: true }) = self.keepalive {
            socket.set_tcp_user_timeout(Some(time + interval * retries))?;
        }
        Ok(())
    }

    fn set_keepalive(&self, socket: &SockRef<'_>) -> io::Result<()> {
        let Some(Keepalive { time, interval, retries, .. }) = self.keepalive else { return Ok(()) };
        let params = TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries);
        socket.set_tcp_keepalive(&params)
    }

    /// A non-blocking, marked socket of the address's family in the factory's namespace.
    fn open(&self, addr: SocketAddr, kind: Type) -> Result<Socket, Error> {
        let socket = self.inside(|| new(addr, kind))?.map_err(Error::on("make socket for", addr))?;
        if addr.is_ipv6() && addr.ip().is_unspecified() {
            socket.set_only_v6(false).map_err(Error::on("make dual-stack socket for", addr))?;
        }
        self.set_mark(&socket, addr)?;
        Ok(socket)
    }

    fn set_mark(&self, socket: &Socket, addr: SocketAddr) -> Result<(), Error> {
        let Some(mark) = self.mark else { return Ok(()) };
        socket.set_mark(mark).map_err(Error::on("set SO_MARK of socket for", addr))
    }

    /// Runs `make` in the factory's namespace.
    fn inside<T>(&self, make: impl FnOnce() -> T) -> Result<T, Error> {
        match &self.netns {
            Some(netns) => netns.run(make),
            None => Ok(make()),
        }
    }
}

fn new(addr: SocketAddr, kind: Type) -> io::Result<Socket> {
    let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
    Socket::new(Domain::for_address(addr), kind.nonblocking(), Some(protocol))
}

/// The original destination of a redirected connection, in canonical form; `None` when it was not redirected.
#[must_use]
pub fn original_dst(stream: &TcpStream) -> Option<SocketAddr> {
    let socket = SockRef::from(stream);
    let found = socket.original_dst_v4().or_else(|_| socket.original_dst_v6()).ok()?;
    found.as_socket().map(canonical)
}

/// Makes closing the connection send a reset (`SO_LINGER` 0), so that the application sees an abort and not the end of
/// the data.
pub fn reset_on_close(stream: &TcpStream) {
    if let Err(error) = SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "SO_LINGER not set, the connection closes without a reset");
    }
}

#[cfg(test)]
mod tests;
