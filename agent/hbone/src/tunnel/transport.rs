//! What a tunnel runs over: a byte stream, with or without the record layer of a finished TLS handshake above it.

use isthmus_record::{Opener, Sealer};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::TcpStream;

use crate::error::TunnelError;

/// A byte stream, and the keys of the session over it.
#[derive(Debug)]
pub struct Link<S> {
    pub(crate) io: S,
    pub(crate) keys: Option<Keys>,
}

/// The keys of a session, and what was received behind its handshake.
#[derive(Debug)]
pub(crate) struct Keys {
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
    pub(crate) received: Vec<u8>,
}

/// What a tunnel can run over. The owner of a tunnel is a task, so what [`isthmus_rt::task::Spawnable`] requires of a task
/// is required of its transport here, and nowhere else in this crate.
pub trait Transport: Send + 'static {
    /// The byte stream at the bottom.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Takes it apart: the tunnel does the record layer itself.
    ///
    /// # Errors
    /// When the session's keys cannot be taken over.
    fn into_link(self) -> Result<Link<Self::Io>, TunnelError>;
}

// === impl Link ===

impl<S> Link<S> {
    /// A byte stream without TLS.
    pub fn plain(io: S) -> Self {
        Self { io, keys: None }
    }

    /// The same session over a wrapped byte stream.
    pub fn map<T>(self, wrap: impl FnOnce(S) -> T) -> Link<T> {
        Link { io: wrap(self.io), keys: self.keys }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Transport for Link<S> {
    type Io = S;

    fn into_link(self) -> Result<Self, TunnelError> {
        Ok(self)
    }
}

impl Transport for TcpStream {
    type Io = Self;

    fn into_link(self) -> Result<Link<Self>, TunnelError> {
        Ok(Link::plain(self))
    }
}

impl Transport for DuplexStream {
    type Io = Self;

    fn into_link(self) -> Result<Link<Self>, TunnelError> {
        Ok(Link::plain(self))
    }
}
