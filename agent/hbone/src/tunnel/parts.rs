//! A tunnel as plain values: what its owner, its state and the copies of its streams leave when they stop.
//!
//! Each part is made by an exhaustive destructuring of what it comes from, so that new state of a tunnel does not compile
//! before it is decided here what becomes of it. Times are relative, since clocks of two processes have no common origin.
//! Must not know how the values are carried.

use std::any::Any;
use std::fmt;
use std::io;
use std::net;
use std::time::Duration;

use bytes::Bytes;
use isthmus_http2::{self as http2, Code, StreamId};
use isthmus_record::{OpenerParts, SealerParts};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::copy::outcome::Side;
use crate::error::StreamError;

/// A tunnel that was brought to rest and taken apart, with the connections of its applications. Dropped, it resets them and
/// closes the tunnel's transport without a word.
pub struct TunnelParts {
    pub(crate) transport: TransportParts,
    pub(crate) keys: Option<KeyParts>,
    pub(crate) http2: http2::Parts,
    /// Records that were sealed and not written, or frames without TLS; the first may be written in part.
    pub(crate) unwritten: Vec<u8>,
    pub(crate) owes_key_update: bool,
    /// What was read of the transport and not opened.
    pub(crate) received: Vec<u8>,
    pub(crate) timers: TimerParts,
    pub(crate) round_trip: RoundTripParts,
    pub(crate) connection_window: ConnectionWindowParts,
    /// This end opens no more streams.
    pub(crate) closing: bool,
    pub(crate) goaway: Option<(Code, Vec<u8>)>,
    /// Streams with a copy, and those of `requests`.
    pub(crate) streams: Vec<StreamParts>,
    /// Requests that were not passed on yet.
    pub(crate) requests: Vec<(StreamId, http2::RequestHead)>,
    /// Of a client: its own limit of streams.
    pub(crate) client_limit: Option<usize>,
    /// When its streams began to stop, or when it was decoded.
    pub(crate) stopped: Instant,
}

/// What a tunnel runs over.
pub(crate) enum TransportParts {
    /// A socket that no runtime knows.
    Tcp(net::TcpStream),
    /// What was wrapped around a socket, or no socket.
    Other(Box<dyn Any + Send>),
}

/// Both directions of the TLS session.
#[derive(Debug)]
pub(crate) struct KeyParts {
    pub(crate) sealer: SealerParts,
    pub(crate) opener: OpenerParts,
}

/// What the owner leaves.
pub(super) struct OwnerParts {
    pub(super) transport: io::Result<TransportParts>,
    pub(super) opener: Option<OpenerParts>,
    pub(super) received: Vec<u8>,
    pub(super) timers: TimerParts,
}

/// The owner's times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimerParts {
    /// Since the last byte was received.
    pub(crate) silence: Duration,
    /// Since the last keepalive PING was sent.
    pub(crate) pinged: Option<Duration>,
    /// Which the budgets against abuse have not been told of.
    pub(crate) since_tick: Duration,
    /// Since when no stream is open.
    pub(crate) idle: Option<Duration>,
}

/// The measured round trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RoundTripParts {
    /// Since the PING that was not answered yet was sent.
    pub(crate) sent: Option<Duration>,
    /// The last round trip, and since when it has ended.
    pub(crate) last: Option<(Duration, Duration)>,
}

/// How a window is used: bytes taken of it, and since when they are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WindowUseParts {
    pub(crate) taken: u64,
    pub(crate) since: Option<Duration>,
}

/// The growth of the connection's window, beyond that of its streams' windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionWindowParts {
    /// For streams whose windows have not grown.
    pub(crate) base: u32,
    pub(crate) window_use: WindowUseParts,
}

/// One stream above HTTP/2.
#[derive(Debug)]
pub(crate) struct StreamParts {
    pub(crate) id: StreamId,
    /// Received bytes that the application has not taken.
    pub(crate) queue: Vec<Bytes>,
    pub(crate) end: Option<Result<(), StreamError>>,
    pub(crate) lost: Option<StreamError>,
    pub(crate) unprocessed: bool,
    pub(crate) window: WindowUseParts,
    pub(crate) grown: u32,
    pub(crate) finished: bool,
    pub(crate) discards: bool,
    /// None for a request that was not passed on.
    pub(crate) copy: Option<CopyParts>,
}

/// The copy of a stream and its application's connection.
pub(crate) struct CopyParts {
    pub(crate) app: AppSocket,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Records that the next read of the application may fill.
    pub(crate) slots: usize,
    /// The application's FIN was passed on.
    pub(crate) send_done: bool,
    /// The peer accepts no more data.
    pub(crate) refused: Option<StreamError>,
    /// Stream → application has ended.
    pub(crate) receive_done: bool,
    pub(crate) closed_by: Option<Side>,
    /// The error of a write to the application which the copy has not seen: a socket reports it once.
    pub(crate) write_error: Option<io::Error>,
}

/// The socket of an application, which is reset unless it is taken.
pub(crate) struct AppSocket {
    tcp: Option<net::TcpStream>,
    /// Another process may hold the socket, too, and go on with it: the options of the socket are left alone.
    is_shared: bool,
}

/// A time in the past; now, if the machine has not been up for that long.
pub(super) fn ago(since: Duration) -> Instant {
    let now = Instant::now();
    now.checked_sub(since).unwrap_or(now)
}

// === impl TunnelParts ===

impl TunnelParts {
    /// Which end of the tunnel this is.
    #[must_use]
    pub fn role(&self) -> http2::Role {
        self.http2.role
    }

    /// The streams with a connection of an application, in the order of their ids.
    pub fn streams(&self) -> impl Iterator<Item = StreamId> {
        self.streams.iter().filter(|stream| stream.copy.is_some()).map(|stream| stream.id)
    }

    /// When the tunnel's streams began to stop; of parts that were decoded, when they were.
    #[must_use]
    pub fn stopped(&self) -> Instant {
        self.stopped
    }

    /// Replaces the transport by what it was wrapped around: only a socket can be handed to another process. Does nothing
    /// when the transport is no `S`.
    ///
    /// # Errors
    /// When the socket cannot be taken from the runtime.
    pub fn unwrap_transport<S: Send + 'static>(
        &mut self,
        unwrap: impl FnOnce(S) -> TcpStream,
    ) -> io::Result<()> {
        match std::mem::replace(&mut self.transport, TransportParts::Other(Box::new(()))) {
            TransportParts::Other(other) => match other.downcast::<S>() {
                Ok(wrapped) => self.transport = TransportParts::Tcp(unwrap(*wrapped).into_std()?),
                Err(other) => self.transport = TransportParts::Other(other),
            },
            tcp @ TransportParts::Tcp(_) => self.transport = tcp,
        }
        Ok(())
    }

    /// Takes the transport, if it is an `S`, to go on over it in this process.
    ///
    /// # Errors
    /// The parts, unchanged, when it is something else.
    pub fn take_transport<S: Send + 'static>(mut self) -> Result<(S, Self), Box<Self>> {
        match std::mem::replace(&mut self.transport, TransportParts::Other(Box::new(()))) {
            TransportParts::Other(other) => match other.downcast::<S>() {
                Ok(io) => Ok((*io, self)),
                Err(other) => Err(Box::new(Self { transport: TransportParts::Other(other), ..self })),
            },
            tcp @ TransportParts::Tcp(_) => Err(Box::new(Self { transport: tcp, ..self })),
        }
    }
}

impl fmt::Debug for TunnelParts {
    /// Without bytes of applications.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelParts")
            .field("role", &self.http2.role)
            .field("streams", &self.streams.len())
            .field("requests", &self.requests.len())
            .field("unwritten", &self.unwritten.len())
            .field("received", &self.received.len())
            .finish_non_exhaustive()
    }
}

// === impl TransportParts ===

impl TransportParts {
    /// A socket leaves its runtime.
    pub(super) fn new<S: Send + 'static>(io: S) -> io::Result<Self> {
        let io: Box<dyn Any + Send> = Box::new(io);
        match io.downcast::<TcpStream>() {
            Ok(tcp) => Ok(Self::Tcp(tcp.into_std()?)),
            Err(other) => Ok(Self::Other(other)),
        }
    }
}

// === impl CopyParts ===

impl fmt::Debug for CopyParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyParts")
            .field("sent", &self.sent)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

// === impl AppSocket ===

impl fmt::Debug for AppSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppSocket").finish_non_exhaustive()
    }
}

impl AppSocket {
    pub(crate) fn new(tcp: net::TcpStream) -> Self {
        Self { tcp: Some(tcp), is_shared: false }
    }

    /// One that came from another process, which has set it to be reset when its last holder closes it.
    pub(crate) fn received(tcp: net::TcpStream) -> Self {
        Self { tcp: Some(tcp), is_shared: true }
    }

    pub(crate) fn take(mut self) -> Option<net::TcpStream> {
        self.tcp.take()
    }
}

impl Drop for AppSocket {
    /// The application must not take this for a proper end.
    fn drop(&mut self) {
        if let Some(tcp) = self.tcp.take()
            && !self.is_shared
        {
            // Fails only when the socket is closed already.
            let _ = socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO));
        }
    }
}
