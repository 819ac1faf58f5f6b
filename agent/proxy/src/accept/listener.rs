//! Listeners as values that can be handed in, and the one accept loop. Knows no protocol.

use super::handshake_slots::SlotPermit;
use std::io;
use std::net::SocketAddr;

use isthmus_model::AgentPorts;
use isthmus_sys::socket::{self, Sockets, Transparent, canonical};
use tokio::net::{TcpListener, TcpStream};

/// Connections that are taken from a listener when it closes, at most.
const BACKLOG: usize = 1024;

/// A listener that is bound, wherever that was done.
#[derive(Debug)]
pub struct BoundListener {
    listener: TcpListener,
    transparent: bool,
    destination: Option<SocketAddr>,
}

/// The three listeners of a pod.
#[derive(Debug)]
pub struct Listeners {
    /// Captured outbound connections.
    pub outbound: BoundListener,
    /// HBONE.
    pub inbound: BoundListener,
    /// Captured plaintext that arrives.
    pub inbound_plaintext: BoundListener,
}

/// An accepted connection.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) source: SocketAddr,
    /// The address the connection was accepted on.
    pub(crate) local: SocketAddr,
    /// Where the client wanted to go; [`Self::local`] when nothing redirected it.
    pub(crate) original: SocketAddr,
    /// The place among the connections that are being set up, where those are limited.
    pub(crate) place: Option<SlotPermit>,
}

// === impl Bound ===

impl BoundListener {
    /// Binds a port of every address of the namespace that `sockets` stands for. Must be called inside a runtime.
    ///
    /// # Errors
    /// When the port cannot be bound, or transparency was required and is not allowed.
    pub fn wildcard(
        sockets: &Sockets,
        port: u16,
        transparent: Transparent,
    ) -> Result<Self, isthmus_sys::Error> {
        let (listener, transparent) = sockets.listen_wildcard(port, transparent)?;
        Ok(Self::from_tokio(listener, transparent))
    }

    /// A listener that somebody else bound; `transparent` says whether it has `IP_TRANSPARENT`.
    #[must_use]
    pub fn from_tokio(listener: TcpListener, transparent: bool) -> Self {
        Self { listener, transparent, destination: None }
    }

    /// The same for a listener of the standard library. Must be called inside a runtime.
    ///
    /// # Errors
    /// When it cannot be made non-blocking or registered.
    pub fn from_std(listener: std::net::TcpListener, transparent: bool) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::from_tokio(TcpListener::from_std(listener)?, transparent))
    }

    /// Takes every connection as one that was going to `destination`, for a listener that nothing redirects to.
    #[must_use]
    pub fn with_destination(self, destination: SocketAddr) -> Self {
        Self { destination: Some(destination), ..self }
    }

    /// Whether sockets made beside it may use foreign source addresses.
    #[must_use]
    pub fn is_transparent(&self) -> bool {
        self.transparent
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        let (stream, source) = self.listener.accept().await?;
        accepted(stream, source, self.destination)
    }

    /// Closes the listener and hands out what was connected to it and not yet accepted. Without this the kernel would
    /// reset connections that their clients hold for established.
    pub(super) fn into_backlog(self) -> impl Iterator<Item = Accepted> {
        let Self { listener, destination, .. } = self;
        // It is non-blocking and stays so: the iteration ends when nobody waits.
        let listener = listener.into_std().ok();
        let next = move || listener.as_ref()?.accept().ok();
        std::iter::from_fn(next)
            .take(BACKLOG)
            .filter_map(move |(stream, source)| register(stream, source, destination).ok())
    }
}

fn register(
    stream: std::net::TcpStream,
    source: SocketAddr,
    destination: Option<SocketAddr>,
) -> io::Result<Accepted> {
    stream.set_nonblocking(true)?;
    accepted(TcpStream::from_std(stream)?, source, destination)
}

fn accepted(stream: TcpStream, source: SocketAddr, destination: Option<SocketAddr>) -> io::Result<Accepted> {
    let local = canonical(stream.local_addr()?);
    let original = destination.or_else(|| socket::original_dst(&stream)).unwrap_or(local);
    Ok(Accepted { stream, source: canonical(source), local, original, place: None })
}

// === impl Listeners ===

impl Listeners {
    /// Binds the three ports in the namespace that `sockets` stands for. Must be called inside a runtime.
    ///
    /// # Errors
    /// When a port cannot be bound, or transparency was required and is not allowed.
    pub fn bind(
        sockets: &Sockets,
        ports: AgentPorts,
        transparent: Transparent,
    ) -> Result<Self, isthmus_sys::Error> {
        Ok(Self {
            outbound: BoundListener::wildcard(sockets, ports.outbound, transparent)?,
            inbound: BoundListener::wildcard(sockets, ports.inbound, transparent)?,
            inbound_plaintext: BoundListener::wildcard(sockets, ports.inbound_plaintext, transparent)?,
        })
    }
}
