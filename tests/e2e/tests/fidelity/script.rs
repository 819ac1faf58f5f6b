//! Steps of client and server on a road, and what each end observes: the bytes that arrive, however segmented, and how
//! each direction ends. One program plays both ends, so that a step follows when the one before it was observed.

use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::wait;
use isthmus_sys::netns::Netns;
use isthmus_sys::socket::{ConnectError, Sockets, Transparent};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// Ports that the server may listen on.
pub(crate) const PORTS: Range<u16> = 8000..8048;
/// Longest time of one step.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// A sender that can write nothing for so long is blocked.
const HELD_UP: Duration = Duration::from_millis(700);
/// Bytes of one write and one read.
const CHUNK: usize = 128 * 1024;

/// A road from a client to a server.
pub(crate) struct Road {
    pub(crate) name: &'static str,
    pub(crate) client: RoadHost,
    pub(crate) server: RoadHost,
    /// Where the server listens.
    at: IpAddr,
    /// Where the client connects to.
    to: IpAddr,
    /// The source address that the server must see, where it is the client's.
    source: Option<IpAddr>,
    next: Cell<u16>,
}

/// A host of the road.
pub(crate) struct RoadHost {
    pub(crate) netns: Arc<Netns>,
    sockets: Sockets,
}

/// An observation of one end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The connection was made.
    Connected,
    /// The connection was refused.
    Refused,
    /// No answer before the timeout.
    NoAnswer,
    /// So many bytes arrived, all correct.
    Got(u64),
    /// A wrong byte, at this offset.
    Garbled(u64),
    /// FIN of the other end.
    End,
    /// The connection was reset.
    Reset,
    /// Writes fail.
    Broken,
    /// Writes are blocked.
    HeldUp,
}

/// The observations of both ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Trace {
    pub(crate) client: Vec<Event>,
    pub(crate) server: Vec<Event>,
}

/// One end of a connection.
pub(crate) struct End {
    stream: Option<TcpStream>,
    seen: Vec<Event>,
    sent: u64,
    received: u64,
}

// === impl Road ===

impl Road {
    pub(crate) fn new(
        name: &'static str,
        client: (&Arc<Netns>, &Sockets),
        server: (&Arc<Netns>, &Sockets),
        at: IpAddr,
    ) -> Self {
        let place = |(netns, sockets): (&Arc<Netns>, &Sockets)| RoadHost {
            netns: Arc::clone(netns),
            sockets: sockets.clone(),
        };
        Self {
            name,
            client: place(client),
            server: place(server),
            at,
            to: at,
            source: None,
            next: Cell::new(PORTS.start),
        }
    }

    /// The client dials another address than the server's own.
    pub(crate) fn to(self, to: IpAddr) -> Self {
        Self { to, ..self }
    }

    /// The server must see the client's address.
    pub(crate) fn seen_as(self, source: IpAddr) -> Self {
        Self { source: Some(source), ..self }
    }

    /// A port that no step has used yet.
    pub(crate) fn port(&self) -> u16 {
        let port = self.next.get();
        assert!(PORTS.contains(&port), "the script needs more ports");
        self.next.set(port + 1);
        port
    }

    /// Where the server listens.
    pub(crate) fn here(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.at, port)
    }

    pub(crate) fn listen(&self, port: u16) -> Result<TcpListener> {
        Ok(self.server.sockets.listen(self.here(port), Transparent::Never)?.0)
    }

    pub(crate) async fn connect(&self, port: u16) -> Result<TcpStream, ConnectError> {
        self.connect_within(port, PATIENCE).await
    }

    pub(crate) async fn connect_within(
        &self,
        port: u16,
        patience: Duration,
    ) -> Result<TcpStream, ConnectError> {
        let stream = self.client.sockets.connect(SocketAddr::new(self.to, port), None, patience).await?;
        // What is written is sent at once.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    /// Whether the server is being dialled: by the client itself, or by its agent.
    pub(crate) fn dials(&self, port: u16) -> Result<bool> {
        // On a road with agents the client's own dial is answered by its agent.
        let by_client = self.at == self.to && self.name == "direct" && self.client.dials(port)?;
        Ok(by_client || self.server.dials(port)?)
    }

    /// A connection that both ends have.
    pub(crate) async fn meet(&self) -> Result<(End, End)> {
        let port = self.port();
        self.meet_at(&self.listen(port)?, port).await
    }

    pub(crate) async fn meet_at(&self, listener: &TcpListener, port: u16) -> Result<(End, End)> {
        let accepted = async { timeout(PATIENCE, listener.accept()).await.context("no connection arrives") };
        let (client, server) = tokio::join!(self.connect(port), accepted);
        let (client, (server, source)) = (client?, server??);
        let as_wanted = self.source.is_none_or(|wanted| source.ip() == wanted);
        ensure!(as_wanted, "the server sees {source} instead of {:?}", self.source);
        server.set_nodelay(true)?;
        Ok((End::new(client), End::new(server)))
    }
}

impl RoadHost {
    pub(crate) fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// Whether a socket here is in SYN-SENT.
    pub(crate) fn dials(&self, port: u16) -> Result<bool> {
        Ok(self.sockets_to(port, "02")? > 0)
    }

    /// Connections from here to a port.
    pub(crate) fn connected(&self, port: u16) -> Result<usize> {
        self.sockets_to(port, "01")
    }

    /// Sockets of this host in a state, towards a port.
    fn sockets_to(&self, port: u16, state: &str) -> Result<usize> {
        let read = || std::fs::read_to_string("/proc/thread-self/net/tcp");
        let (table, port) = (self.netns.run(read)??, format!(":{port:04X}"));
        let counts = |line: &&str| {
            let mut columns = line.split_ascii_whitespace().skip(2);
            columns.next().is_some_and(|remote| remote.ends_with(&port)) && columns.next() == Some(state)
        };
        Ok(table.lines().filter(counts).count())
    }
}

// === impl End ===

impl End {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream: Some(stream), seen: vec![Event::Connected], sent: 0, received: 0 }
    }

    /// The observation of a client that connects.
    pub(crate) fn tried(tried: Result<TcpStream, ConnectError>) -> Result<Self> {
        let (stream, seen) = match tried {
            Ok(stream) => (Some(stream), vec![Event::Connected]),
            Err(ConnectError::Refused { .. }) => (None, vec![Event::Refused]),
            Err(ConnectError::Timeout { .. }) => (None, vec![Event::NoAnswer]),
            // Connected, and reset before the client looked: a SYN that is answered with a reset is refused.
            Err(ConnectError::Other { cause, .. }) if cause.kind() == ErrorKind::ConnectionReset => {
                (None, vec![Event::Connected, Event::Reset])
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self { stream, seen, sent: 0, received: 0 })
    }

    fn stream(&mut self) -> Result<&mut TcpStream> {
        self.stream.as_mut().context("this end is closed")
    }

    fn saw(&mut self, event: Event) {
        saw(&mut self.seen, event);
    }

    pub(crate) fn trace(client: Self, server: Self) -> Trace {
        Trace { client: client.seen, server: server.seen }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    pub(crate) fn seen(self) -> Vec<Event> {
        self.seen
    }

    /// Sends the next `bytes` of the pattern.
    pub(crate) async fn send(&mut self, bytes: u64) -> Result<()> {
        self.send_in(bytes, CHUNK).await
    }

    /// The same in pieces of a size.
    pub(crate) async fn send_in(&mut self, bytes: u64, piece: usize) -> Result<()> {
        let until = self.sent + bytes;
        while self.sent < until {
            let part = pattern(self.sent, (until - self.sent).min(piece as u64));
            let stream = self.stream()?;
            match timeout(PATIENCE, stream.write(part)).await.context("a write hangs")? {
                Ok(n) => self.sent += n as u64,
                Err(error) => {
                    self.saw(broken(&error)?);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Sends up to `bytes` of the pattern, until writes block.
    pub(crate) async fn send_until_held_up(&mut self, bytes: u64) -> Result<()> {
        let until = self.sent + bytes;
        while self.sent < until {
            let part = pattern(self.sent, (until - self.sent).min(CHUNK as u64));
            match timeout(HELD_UP, self.stream()?.write(part)).await {
                Ok(wrote) => self.sent += wrote? as u64,
                Err(_) => {
                    self.saw(Event::HeldUp);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Sends byte by byte until writes fail.
    pub(crate) async fn send_until_told(&mut self) -> Result<()> {
        let broken = async || match self.send(1).await {
            Ok(()) => self.seen.contains(&Event::Broken).then_some(Ok(())),
            Err(error) => Some(Err(error)),
        };
        wait::within(PATIENCE, broken).await.context("no reset although the other end is gone")?
    }

    /// Bytes of the pattern that were sent.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Reads `bytes`, or to the end when that comes first.
    pub(crate) async fn read(&mut self, bytes: u64) -> Result<()> {
        let until = self.received.saturating_add(bytes);
        let mut buffer = vec![0; CHUNK];
        while self.received < until {
            let room = usize::try_from(until - self.received).unwrap_or(CHUNK).min(CHUNK);
            let read = timeout(PATIENCE, self.stream()?.read(&mut buffer[..room])).await;
            match read.with_context(|| format!("nothing comes after {:?}", self.seen))? {
                Ok(0) => {
                    self.saw(Event::End);
                    return Ok(());
                }
                Ok(n) => check(&mut self.seen, &mut self.received, &buffer[..n]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    self.saw(Event::Reset);
                    return Ok(());
                }
                Err(error) => return Err(error).context("reading"),
            }
        }
        Ok(())
    }

    /// Reads to the end.
    pub(crate) async fn rest(&mut self) -> Result<()> {
        self.read(u64::MAX).await
    }

    /// Sends so much and a FIN, while it reads to the end.
    pub(crate) async fn exchange(&mut self, bytes: u64) -> Result<()> {
        let Self { stream, seen, sent, received } = self;
        let (mut read, mut write) = stream.as_mut().context("this end is closed")?.split();
        let send = async {
            while *sent < bytes {
                let part = pattern(*sent, (bytes - *sent).min(CHUNK as u64));
                *sent += timeout(PATIENCE, write.write(part)).await.context("a write hangs")?? as u64;
            }
            Ok(write.shutdown().await?)
        };
        let receive = async {
            let mut buffer = vec![0; CHUNK];
            loop {
                match timeout(PATIENCE, read.read(&mut buffer)).await.context("nothing comes")?? {
                    0 => break saw(seen, Event::End),
                    n => check(seen, received, &buffer[..n]),
                }
            }
            Ok::<_, anyhow::Error>(())
        };
        tokio::try_join!(send, receive).map(drop)
    }

    /// Waits until `bytes` have arrived, and leaves them unread.
    pub(crate) async fn arrived(&mut self, bytes: usize) -> Result<()> {
        let mut buffer = vec![0; bytes];
        let stream = self.stream()?;
        let there = async || match stream.peek(&mut buffer).await {
            Ok(count) => (count >= bytes).then_some(Ok(())),
            Err(error) => Some(Err(error)),
        };
        Ok(wait::within(PATIENCE, there).await.context("the bytes do not arrive")??)
    }

    /// Sends a FIN.
    pub(crate) async fn finish(&mut self) -> Result<()> {
        Ok(self.stream()?.shutdown().await?)
    }

    /// Closes, as a program that exits.
    pub(crate) fn close(&mut self) {
        self.stream = None;
    }

    /// Resets the connection.
    pub(crate) fn reset(&mut self) -> Result<()> {
        self.stream()?.set_zero_linger()?;
        self.close();
        Ok(())
    }
}

fn saw(seen: &mut Vec<Event>, event: Event) {
    match (seen.last_mut(), &event) {
        // However they were segmented.
        (Some(Event::Got(bytes)), Event::Got(more)) => *bytes += more,
        _ => seen.push(event),
    }
}

/// Compares what arrived with the pattern.
fn check(seen: &mut Vec<Event>, received: &mut u64, bytes: &[u8]) {
    let mut left = bytes;
    while !left.is_empty() {
        let want = pattern(*received, left.len() as u64);
        let (part, rest) = left.split_at(want.len());
        saw(seen, if part == want { Event::Got(want.len() as u64) } else { Event::Garbled(*received) });
        *received += want.len() as u64;
        left = rest;
    }
}

/// A reset fails the first write after it or the second, depending on timing.
fn broken(error: &io::Error) -> Result<Event> {
    let gone = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
    ensure!(gone.contains(&error.kind()), "writing: {error}");
    Ok(Event::Broken)
}

/// Bytes of the pattern from an offset on: at most as many as asked for, at least one. Neighbouring pieces differ
/// wherever they are cut, since the period is no multiple of any buffer's size.
fn pattern(from: u64, most: u64) -> &'static [u8] {
    const PERIOD: usize = 1_048_583;
    static PATTERN: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
        let mut random = fastrand::Rng::with_seed(17);
        let mut bytes = vec![0; PERIOD];
        random.fill(&mut bytes);
        bytes
    });
    let at = usize::try_from(from % PERIOD as u64).unwrap_or_default();
    let end = at.saturating_add(usize::try_from(most).unwrap_or(PERIOD)).min(PERIOD);
    &PATTERN[at..end]
}

/// The observations of a client that connects, sends nothing and reads.
pub(crate) async fn attempt(road: &Road, port: u16, patience: Duration) -> Result<End> {
    let mut client = End::tried(road.connect_within(port, patience).await)?;
    if client.is_open() {
        client.rest().await?;
    }
    Ok(client)
}
