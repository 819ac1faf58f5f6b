//! Bound listeners as values, and what is known of a connection when it is accepted: source, local address and original
//! destination. Knows no protocol, and not in which namespace a listener is bound.

use std::io;
use std::net::SocketAddr;

use isthmus_model::AgentPorts;
use isthmus_rt::descriptors::DescriptorPermit;
use isthmus_sys::socket::{self, Sockets, Transparent, canonical};
use tokio::net::{TcpListener, TcpStream};

use super::handshake_slots::SlotPermit;

/// Maximum of connections that are taken from the kernel's queue when a listener closes.
const BACKLOG: usize = 1024;

/// A bound listener, in any network namespace.
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
    /// Captured inbound plaintext.
    pub inbound_plaintext: BoundListener,
}

/// An accepted connection.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) source: SocketAddr,
    /// The original destination; [`Self::local`] when the connection was not redirected.
    pub(crate) original: SocketAddr,
    /// The handshake slot, on listeners that limit handshakes.
    pub(crate) slot: Option<SlotPermit>,
    /// Counts the descriptor; it is to be kept for as long as the stream.
    pub(crate) descriptor: Option<DescriptorPermit>,
}

/// An accepted connection on its way to another thread.
#[derive(Debug)]
pub(super) struct Detached {
    stream: std::net::TcpStream,
    source: SocketAddr,
    original: SocketAddr,
    slot: Option<SlotPermit>,
    descriptor: Option<DescriptorPermit>,
}

// === impl BoundListener ===

impl BoundListener {
    /// Binds a port on all addresses of the namespace of `sockets`. Must be called inside a runtime.
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

    /// Wraps a bound listener; `transparent` tells whether it has `IP_TRANSPARENT`.
    #[must_use]
    pub fn from_tokio(listener: TcpListener, transparent: bool) -> Self {
        Self { listener, transparent, destination: None }
    }

    /// Wraps a listener of the standard library. Must be called inside a runtime.
    ///
    /// # Errors
    /// When the listener cannot be made non-blocking or registered with the runtime.
    pub fn from_std(listener: std::net::TcpListener, transparent: bool) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::from_tokio(TcpListener::from_std(listener)?, transparent))
    }

    /// Sets the original destination of every connection, for a listener to which no connection is redirected.
    #[must_use]
    pub fn with_destination(self, destination: SocketAddr) -> Self {
        Self { destination: Some(destination), ..self }
    }

    /// Whether `IP_TRANSPARENT` was granted: sockets of the same namespace may use foreign source addresses too.
    #[must_use]
    pub fn is_transparent(&self) -> bool {
        self.transparent
    }

    /// The listener's address.
    ///
    /// # Errors
    /// When `getsockname` fails.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        let (stream, source) = self.listener.accept().await?;
        accepted(stream, source, self.destination)
    }

    /// Closes the listener after accepting the connections in its queue. The kernel would reset those, though their
    /// clients have seen the handshake completed.
    pub(super) fn into_backlog(self) -> impl Iterator<Item = Accepted> {
        let Self { listener, destination, .. } = self;
        // Still non-blocking: the iteration ends when the queue is empty.
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
    let original = match destination.or_else(|| socket::original_dst(&stream)) {
        Some(original) => original,
        None => canonical(stream.local_addr()?),
    };
    Ok(Accepted { stream, source: canonical(source), original, slot: None, descriptor: None })
}

// === impl Accepted ===

impl Accepted {
    /// The address on which the connection was accepted: a system call that captured outbound connections do without.
    pub(crate) fn local(&self) -> SocketAddr {
        // Fails for a closed socket only.
        self.stream.local_addr().map_or(self.original, canonical)
    }
}

// === impl Accepted ===

impl Accepted {
    /// Takes the connection from the event loop of the current thread.
    pub(super) fn detach(self) -> io::Result<Detached> {
        let Self { stream, source, original, slot, descriptor } = self;
        Ok(Detached { stream: stream.into_std()?, source, original, slot, descriptor })
    }
}

// === impl Detached ===

impl Detached {
    /// Registers the connection with the event loop of the current thread, which carries it from now on.
    pub(super) fn attach(self) -> io::Result<Accepted> {
        let Self { stream, source, original, slot, descriptor } = self;
        Ok(Accepted { stream: TcpStream::from_std(stream)?, source, original, slot, descriptor })
    }
}

// === impl Listeners ===

impl Listeners {
    /// Binds the three ports in the namespace of `sockets`. Must be called inside a runtime.
    ///
    /// # Errors
    /// When a port cannot be bound, or transparency was required and is not allowed.
    pub fn bind(
        sockets: &Sockets,
        ports: AgentPorts,
        transparent: Transparent,
    ) -> Result<Self, isthmus_sys::Error> {
        Ok(Self {
            // The others accept connections that come from elsewhere.
            outbound: BoundListener::wildcard(&sockets.local(), ports.outbound, transparent)?,
            inbound: BoundListener::wildcard(sockets, ports.inbound, transparent)?,
            inbound_plaintext: BoundListener::wildcard(sockets, ports.inbound_plaintext, transparent)?,
        })
    }
}
