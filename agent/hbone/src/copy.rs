//! Copying between an application's TCP connection and a stream, or between two TCP connections, until both
//! directions have ended.
//!
//! What one side does is what the other side sees: a FIN becomes END_STREAM and back, direction by direction; an
//! application's RST becomes RST_STREAM(CONNECT_ERROR); any reset of a stream that had not ended becomes a RST for the
//! application, and so does dropping the copy half way. A truncated stream never looks complete, a complete one never
//! looks truncated.

mod chunk;
mod plain;
mod tunnel;

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::{Blame, Stream, StreamError};

/// Is told of bytes as they are copied. Called on the data path: count, do not compute.
pub trait Count {
    /// Bytes went from the local side to the remote one.
    fn sent(&self, bytes: u64);
    /// Bytes went from the remote side to the local one.
    fn received(&self, bytes: u64);
}

/// Counts nothing.
impl Count for () {
    fn sent(&self, _: u64) {}
    fn received(&self, _: u64) {}
}

/// A side of a copy: the first argument of [`tunnel()`] and [`plain()`] is local, the second remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The TCP connection given first.
    Local,
    /// The stream, or the TCP connection given second.
    Remote,
}

/// How a copy ended.
#[derive(Debug)]
pub struct Ended {
    /// Bytes from the local side to the remote one.
    pub sent: u64,
    /// Bytes from the remote side to the local one.
    pub received: u64,
    /// Which side ended first, or broke.
    pub closed_by: Side,
    /// What broke; `None` when both sides ended by themselves.
    pub error: Option<CopyError>,
}

/// What broke a copy.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A TCP connection failed.
    #[error("{}: {error}", match side { Side::Local => "local connection", Side::Remote => "remote connection" })]
    Tcp {
        /// Which one.
        side: Side,
        /// How.
        #[source]
        error: io::Error,
    },
    /// The stream was reset or lost.
    #[error("{0}")]
    Stream(#[from] StreamError),
}

impl CopyError {
    /// The side that broke.
    #[must_use]
    pub fn side(&self) -> Side {
        match self {
            Self::Tcp { side, .. } => *side,
            Self::Stream(_) => Side::Remote,
        }
    }

    /// Who is to blame.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::Tcp { .. } => Blame::Peer,
            Self::Stream(error) => error.blame(),
        }
    }
}

/// Copies between an application's connection and a stream. Dropping the future resets both.
pub async fn tunnel(tcp: TcpStream, stream: Stream, counts: &impl Count) -> Ended {
    let mut copy = tunnel::Copy::new(tcp, stream);
    let (ended, calm) = poll_fn(|cx| copy.poll(cx, counts)).await;
    if let Some(tcp) = copy.into_tcp().filter(|_| calm) {
        // Boxed, as in `plain`: rare, and its buffer would be part of every copy.
        Box::pin(linger(tcp)).await;
    }
    ended
}

/// Copies between two TCP connections. Dropping the future resets both.
pub async fn plain(local: TcpStream, remote: TcpStream, counts: &impl Count) -> Ended {
    let mut copy = plain::Copy::new(local, remote);
    let (ended, calm) = poll_fn(|cx| copy.poll(cx, counts)).await;
    for (tcp, side) in copy.into_both() {
        if calm == Some(side) {
            Box::pin(linger(tcp)).await;
        }
    }
    ended
}

/// How long a connection may go on sending to a side that listens no more.
const LINGER: Duration = Duration::from_secs(5);

/// Lets an application that was told FIN finish sending, to nobody. Closing with unread data would make the kernel
/// send a RST, which can overtake what the application has not read yet.
async fn linger(mut tcp: TcpStream) {
    let mut nowhere = [0; 4096];
    let mut discard = pin!(async { while tcp.read(&mut nowhere).await.is_ok_and(|n| n > 0) {} });
    let _ = tokio::time::timeout(LINGER, &mut discard).await;
}
