//! Handing a tunnel over: it is brought to rest, taken apart into plain values, and put together again, in this process or
//! in another, without the peer or an application noticing.
//!
//! [`Tunnel::take_apart`] and [`Control::take_apart`] return [`TunnelParts`]; [`resume_client`] and [`resume_server`] make a
//! running tunnel of them. Between two processes they travel as [`Item`]s: bytes, and the descriptor that belongs to them.
//!
//! *At rest* means that records are whole on the side of reading (a part of one stays as bytes), sealed on the side of
//! writing (what was not written stays as bytes), and that no copy reads or writes its application. The peer sees a pause.
//!
//! Moved are the streams under [`crate::copy::tunnel()`] and requests that were not passed on yet. A CONNECT that awaits its
//! answer, and a stream that something else reads or writes, belong to tasks that cannot be moved: taking apart waits for
//! them for a limited time, in which the tunnel opens no streams and passes no requests on, and fails with
//! [`QuiesceError::Unsettled`] otherwise. Such a tunnel goes on as before; its process ends it as a drain does.
//!
//! Memory is charged to the budgets of the process in which the tunnel goes on, and windows are fitted to them there. An
//! application that only lingers stays behind: its stream is over, and does not count there against the peer.
//!
//! A copy whose stream was taken returns [`TunnelError::HandedOver`](crate::TunnelError::HandedOver) as its error: its
//! application's connection is open and belongs to the parts. They are of one stream by [`crate::Stream::id`].

mod http2;
mod plain;
mod stream;
mod tunnel;
mod wire;

use std::sync::Arc;

pub use isthmus_http2::Role;
use isthmus_rt::task::Tasks;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

pub use self::plain::{decode_plain, encode_plain};
pub use self::tunnel::{decode, encode};
pub use self::wire::{DecodeError, EncodeError, Item, MAX_ITEM, VERSION, wipe};
use crate::byte_counter::ByteCounter;
use crate::client::{self, Tunnel};
use crate::copy::{self, CopyOutcome};
pub use crate::error::{QuiesceError, ResumeError};
pub use crate::server::Control;
use crate::server::Server;
use crate::settings::Settings;
pub use crate::tunnel::TunnelParts;
use crate::tunnel::{CopyParts, StreamRef, TunnelId};

/// A connection of an application that goes on: the caller runs it, as it ran the one before.
#[derive(Debug)]
pub struct ResumedCopy {
    stream: StreamRef,
    parts: CopyParts,
}

/// Puts the client's end of a tunnel together, over its socket. Its owner runs at once; each copy is for the caller to run.
///
/// # Errors
/// When the parts are not of a client's end over a socket, or cannot be used.
pub fn resume_client(
    parts: TunnelParts,
    settings: &Settings,
    tasks: &Tasks,
) -> Result<(Tunnel, Vec<ResumedCopy>), ResumeError> {
    let (io, parts) = parts.take_socket()?;
    resume_client_over(io, parts, settings, tasks)
}

/// Like [`resume_client`], over a transport that the caller has taken out of the parts.
///
/// # Errors
/// When the parts are not of a client's end, or cannot be used.
pub fn resume_client_over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    io: S,
    parts: TunnelParts,
    settings: &Settings,
    tasks: &Tasks,
) -> Result<(Tunnel, Vec<ResumedCopy>), ResumeError> {
    if parts.role() != Role::Client {
        return Err(ResumeError::Role);
    }
    let resumed = parts.resume(io, settings)?;
    let (core, limit) = (Arc::clone(resumed.owner.core()), resumed.client_limit);
    let (tunnel, permits) = client::resumed(
        resumed.owner,
        limit.unwrap_or(settings.client_max_streams),
        resumed.copies.len(),
        tasks,
    );
    let copies = resumed
        .copies
        .into_iter()
        .zip(permits)
        .map(|((id, parts), permit)| ResumedCopy { stream: StreamRef::new(&core, id, Some(permit)), parts });
    Ok((tunnel, copies.collect()))
}

/// Puts the server's end of a tunnel together, over its socket. [`Server::serve`] is to be run, and each copy.
///
/// # Errors
/// When the parts are not of a server's end over a socket, or cannot be used.
pub fn resume_server(
    parts: TunnelParts,
    settings: &Settings,
) -> Result<(Server<TcpStream>, Vec<ResumedCopy>), ResumeError> {
    let (io, parts) = parts.take_socket()?;
    resume_server_over(io, parts, settings)
}

/// Like [`resume_server`], over a transport that the caller has taken out of the parts.
///
/// # Errors
/// When the parts are not of a server's end, or cannot be used.
pub fn resume_server_over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    io: S,
    parts: TunnelParts,
    settings: &Settings,
) -> Result<(Server<S>, Vec<ResumedCopy>), ResumeError> {
    if parts.role() != Role::Server {
        return Err(ResumeError::Role);
    }
    let resumed = parts.resume(io, settings)?;
    let core = Arc::clone(resumed.owner.core());
    let copies = resumed
        .copies
        .into_iter()
        .map(|(id, parts)| ResumedCopy { stream: StreamRef::new(&core, id, None), parts });
    Ok((Server::resumed(resumed.owner, settings), copies.collect()))
}

// === impl ResumedCopy ===

impl ResumedCopy {
    /// The stream: the same that [`crate::Stream::id`] had.
    #[must_use]
    pub fn stream(&self) -> u32 {
        self.stream.id
    }

    /// Its tunnel.
    #[must_use]
    pub fn tunnel(&self) -> TunnelId {
        TunnelId::of(&self.stream.core)
    }

    /// Bytes that were carried before, to the peer and from it.
    #[must_use]
    pub fn carried(&self) -> (u64, u64) {
        (self.parts.sent, self.parts.received)
    }

    /// Runs until both directions have ended, as [`crate::copy::tunnel()`] does. `counter` is told of what is carried from
    /// now on; the outcome counts all.
    ///
    /// # Errors
    /// When the application's socket cannot be used: its connection and the stream are reset.
    pub async fn run(self, counter: Arc<dyn ByteCounter>) -> Result<CopyOutcome, ResumeError> {
        Ok(copy::resume(self.stream, self.parts, counter)?.await)
    }
}
