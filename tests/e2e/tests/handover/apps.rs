//! The applications: connections of several kinds, all of whose bytes are compared with a pattern.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::two_nodes::{TwoNodes, VIP};
use isthmus_rt::task::Tasks;
use isthmus_sys::socket::Transparent;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBuf, SndBuf};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

/// Whether the hand-overs are over, so that connections come to their end.
pub(crate) type Done = watch::Receiver<bool>;

/// Of the applications.
const PORT: u16 = 8080;
/// Bytes of an answer after a half-close.
const ANSWER: usize = 100_000;
/// Buffers of the applications' sockets where bytes stall.
const SMALL: usize = 64 * 1024;
/// More than all windows and buffers on the way hold.
const STALLING: usize = 8 * 1024 * 1024;
/// What waits unread at each end.
const UNREAD: usize = 1024 * 1024;
/// How often a half-closed connection carries a byte.
const REMINDER: Duration = Duration::from_secs(15);
/// Longest silence where bytes are expected.
const SILENCE: Duration = Duration::from_secs(60);

/// A connection that was reset; or closed too early, as the kernel does with the sockets of a process that was killed.
#[derive(Debug)]
pub(crate) struct Lost(std::io::Error);

impl Lost {
    pub(crate) fn is_reset(&self) -> bool {
        self.0.kind() != std::io::ErrorKind::UnexpectedEof
    }

    /// The end of a connection whose peer has sent `count` bytes, of `length`.
    fn unless_complete(count: u64, length: Option<u64>) -> Result<()> {
        let text = format!("the peer ended at byte {count} of {length:?}");
        let early = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, text);
        if length == Some(count) { Ok(()) } else { Err(Self(early).into()) }
    }
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the connection was lost: {}", self.0)
    }
}

impl std::error::Error for Lost {}

/// What a connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Both ways, all the time.
    Stream,
    /// Nothing until the end.
    Idle,
    /// A byte now and then.
    Slow,
    /// The client has sent its FIN, and is answered at the end.
    HalfClosed,
    /// The server does not read, and the client sends all that the windows allow.
    Stalled,
    /// A megabyte in each direction that is not read.
    Unread,
}

impl Kind {
    /// Of so many connections, few stall: they take memory.
    pub(crate) fn of(index: usize) -> Self {
        match index % 80 {
            0 => Self::Stalled,
            1..=3 => Self::Unread,
            4..=19 => Self::HalfClosed,
            20..=39 => Self::Slow,
            40..=59 => Self::Idle,
            _ => Self::Stream,
        }
    }
}

/// Bytes that differ by connection, direction and place: a place in a table that no power of two divides.
struct Pattern {
    offset: u64,
    at: u64,
}

/// Prime.
const TABLE: u64 = 65_521;

static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = fastrand::Rng::with_seed(17);
    (0..TABLE).map(|_| random.u8(..)).collect()
});

impl Pattern {
    fn new(seed: u32, to_server: bool) -> Self {
        Self { offset: u64::from(seed) * 7919 + u64::from(to_server) * 31_337, at: 0 }
    }

    /// What comes next, at most this much.
    fn piece(&self, most: usize) -> &'static [u8] {
        let rest = &BYTES[usize::try_from((self.offset + self.at) % TABLE).unwrap_or(0)..];
        &rest[..most.min(rest.len())]
    }

    fn next(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let piece = self.piece(length - bytes.len());
            bytes.extend_from_slice(piece);
            self.at += piece.len() as u64;
        }
        bytes
    }

    fn check(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let piece = self.piece(bytes.len());
            let (now, rest) = bytes.split_at(piece.len());
            ensure!(now == piece, "a byte from {} to {} is wrong", self.at, self.at + piece.len() as u64);
            self.at += piece.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    async fn send(&mut self, to: &mut (impl AsyncWrite + Unpin), length: usize) -> Result<()> {
        let mut left = length;
        while left > 0 {
            let now = left.min(64 * 1024);
            to.write_all(&self.next(now)).await.map_err(Lost)?;
            left -= now;
        }
        Ok(())
    }

    /// Reads and checks until the peer's FIN, which must come at this place.
    async fn expect_end(&mut self, from: &mut (impl AsyncRead + Unpin), length: u64) -> Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = timeout(SILENCE, from.read(&mut buffer)).await;
            let count = count.with_context(|| format!("silence at byte {} of {length}", self.at))?;
            let count = count.map_err(Lost)?;
            if count == 0 {
                return Lost::unless_complete(self.at, Some(length));
            }
            self.check(&buffer[..count])?;
        }
    }
}

/// How a connection gets to its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Road {
    /// From pod to pod, through both agents.
    Mesh,
    /// From the client's pod to a host outside the mesh.
    Out,
    /// From there to the server's pod.
    In,
}

impl Road {
    pub(crate) fn of(index: usize) -> Self {
        match index % 10 {
            3 => Self::Out,
            7 => Self::In,
            _ => Self::Mesh,
        }
    }

    pub(crate) async fn connect(self, lab: &TwoNodes, patience: Duration) -> Result<TcpStream> {
        let (from, to) = match self {
            Self::Mesh => (&lab.client, VIP),
            Self::Out => (&lab.client, SocketAddr::new(lab.outsider.v4.into(), PORT)),
            Self::In => (&lab.outsider, SocketAddr::new(lab.server.v4.into(), PORT)),
        };
        Ok(from.sockets().connect(to, None, patience).await?)
    }

    /// Whether it is carried by the agent of a node.
    pub(crate) fn is_at(self, node: usize) -> bool {
        match self {
            Self::Mesh => true,
            Self::Out => node == 0,
            Self::In => node == 1,
        }
    }
}

/// The server's side of all connections. Returns how many have reached it: a client is connected to its agent before.
pub(crate) fn serve(lab: &TwoNodes, is_done: &Done) -> Result<Arc<AtomicUsize>> {
    let reached = Arc::<AtomicUsize>::default();
    for host in [&lab.server, &lab.outsider] {
        let app = SocketAddr::new(host.v4.into(), PORT);
        let (listener, _) = host.sockets().listen(app, Transparent::Never)?;
        let (connections, is_done, reached) = (Tasks::new("servers"), is_done.clone(), Arc::clone(&reached));
        lab.tasks.spawn("server", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (is_done, reached) = (is_done.clone(), Arc::clone(&reached));
                connections.spawn("connection", async move {
                    // The client reports what it misses.
                    let _ = answer(stream, &reached, is_done).await;
                });
            }
        });
    }
    Ok(reached)
}

async fn over(is_done: &mut Done) {
    // The sender lives as long as the test.
    let _ = is_done.wait_for(|done| *done).await;
}

async fn answer(mut stream: TcpStream, reached: &AtomicUsize, mut is_done: Done) -> Result<()> {
    let (kind, seed) = (stream.read_u8().await?, stream.read_u32().await?);
    reached.fetch_add(1, Ordering::Relaxed);
    if kind == b's' {
        setsockopt(&stream, RcvBuf, &SMALL)?;
    }
    let (mut received, mut sent) = (Pattern::new(seed, true), Pattern::new(seed, false));
    let (mut read, mut write) = stream.split();
    match kind {
        b'e' => {
            tokio::io::copy(&mut read, &mut write).await?;
        }
        b'h' => {
            received.expect_end(&mut read, ANSWER as u64).await?;
            // The kernel's table of connections, by which they are redirected to the agent, forgets one that is half-closed
            // and idle for a minute.
            while timeout(REMINDER, over(&mut is_done)).await.is_err() {
                sent.send(&mut write, 1).await?;
            }
            let rest = ANSWER - usize::try_from(sent.at)?;
            sent.send(&mut write, rest).await?;
        }
        b's' => {
            over(&mut is_done).await;
            received.expect_end(&mut read, STALLING as u64).await?;
            sent.send(&mut write, ANSWER).await?;
        }
        _ => {
            let send = sent.send(&mut write, UNREAD);
            let receive = async {
                over(&mut is_done).await;
                received.expect_end(&mut read, UNREAD as u64).await
            };
            tokio::try_join!(send, receive)?;
        }
    }
    Ok(write.shutdown().await.map_err(Lost)?)
}

/// The client's side of a connection, from its first byte to its end.
pub(crate) async fn client(kind: Kind, seed: u32, mut stream: TcpStream, mut is_done: Done) -> Result<()> {
    let letter = match kind {
        Kind::Stream | Kind::Idle | Kind::Slow => b'e',
        Kind::HalfClosed => b'h',
        Kind::Stalled => b's',
        Kind::Unread => b'u',
    };
    if kind == Kind::Stalled {
        setsockopt(&stream, SndBuf, &SMALL)?;
    }
    stream.write_u8(letter).await.map_err(Lost)?;
    stream.write_u32(seed).await.map_err(Lost)?;
    let (mut sent, mut received) = (Pattern::new(seed, true), Pattern::new(seed, false));
    let (mut read, mut write) = stream.split();
    match kind {
        Kind::Stream | Kind::Idle | Kind::Slow => echo(kind, seed, stream, is_done).await,
        Kind::HalfClosed => {
            sent.send(&mut write, ANSWER).await?;
            write.shutdown().await?;
            received.expect_reply(&mut read, &mut is_done, ANSWER).await
        }
        Kind::Stalled => {
            let send = async {
                sent.send(&mut write, STALLING).await?;
                ensure!(*is_done.borrow(), "the client was not stalled");
                Ok(write.shutdown().await.map_err(Lost)?)
            };
            let mut until = is_done.clone();
            tokio::try_join!(send, received.expect_reply(&mut read, &mut until, ANSWER)).map(drop)
        }
        Kind::Unread => {
            let send = async {
                sent.send(&mut write, UNREAD).await?;
                Ok(write.shutdown().await.map_err(Lost)?)
            };
            let mut until = is_done.clone();
            tokio::try_join!(send, received.expect_reply(&mut read, &mut until, UNREAD)).map(drop)
        }
    }
}

impl Pattern {
    /// Reads nothing before the end of the hand-overs.
    async fn expect_reply(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        is_done: &mut Done,
        length: usize,
    ) -> Result<()> {
        over(is_done).await;
        self.expect_end(from, length as u64).await
    }
}

async fn echo(kind: Kind, seed: u32, mut stream: TcpStream, mut is_done: Done) -> Result<()> {
    let (mut sent, mut received) = (Pattern::new(seed, true), Pattern::new(seed, true));
    let (mut read, mut write) = stream.split();
    let (total, mut is_total) = watch::channel(None);
    let send = async {
        let mut random = fastrand::Rng::with_seed(seed.into());
        loop {
            let (length, pause) = match kind {
                Kind::Stream => (random.usize(1..8 * 1024), random.u64(100..400)),
                Kind::Slow => (1, 1000),
                _ => (0, 100_000_000),
            };
            sent.send(&mut write, length).await?;
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(pause)) => {}
                () = over(&mut is_done) => break,
            }
        }
        sent.send(&mut write, 1000).await?;
        total.send_replace(Some(sent.at));
        Ok(write.shutdown().await.map_err(Lost)?)
    };
    let receive = async {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let count = read.read(&mut buffer).await.map_err(Lost)?;
            if count == 0 {
                return Lost::unless_complete(received.at, *is_total.borrow_and_update());
            }
            received.check(&buffer[..count])?;
        }
    };
    tokio::try_join!(send, receive).map(drop)
}
