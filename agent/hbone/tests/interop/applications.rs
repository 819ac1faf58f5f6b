//! What runs at the two ends of a tunnel: servers that a CONNECT's port chooses, and a client that uses each of them.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::pair::soon;

/// Returns what it received, until the client's end.
pub(crate) const ECHO: u16 = 1;
/// Answers length and hash of what it received, once that has ended.
pub(crate) const DIGEST: u16 = 2;
/// Sends [`early`] and ends its half, then reads.
pub(crate) const EARLY: u16 = 3;
/// Resets the connection at the first byte, where the server can.
pub(crate) const ABORT: u16 = 4;
/// Is never connected to: the CONNECT is answered 503.
pub(crate) const REFUSED: u16 = 5;

/// How a server's reading ended: the digest of what it received, or nothing if it did not end properly.
pub(crate) type Seen = Option<String>;

/// A connection at either end of a tunnel.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Connection for T {}

/// Resets the connection of an application.
pub(crate) fn abort(connection: TcpStream) {
    socket2::SockRef::from(&connection).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Length and FNV-1a hash, in a form that each peer can make.
pub(crate) fn digest(bytes: &[u8]) -> String {
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    format!("{} {}", bytes.len(), bytes.iter().fold(0x811c_9dc5, step))
}

/// What [`EARLY`] sends.
pub(crate) fn early() -> Vec<u8> {
    (0..100_000_u32).map(|n| (n % 251).to_le_bytes()[0]).collect()
}

fn random(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// One connection of a server.
pub(crate) async fn serve(port: u16, mut connection: impl Connection, seen: mpsc::UnboundedSender<Seen>) {
    let mut received = Vec::new();
    if port == EARLY {
        connection.write_all(&early()).await.unwrap();
        connection.shutdown().await.unwrap();
    }
    let mut buffer = vec![0; 50_000];
    let ended = loop {
        match connection.read(&mut buffer).await {
            Ok(0) => break Ok(()),
            Ok(count) => {
                received.extend_from_slice(&buffer[..count]);
                if port == ECHO && connection.write_all(&buffer[..count]).await.is_err() {
                    break Err(());
                }
            }
            Err(_) => break Err(()),
        }
    };
    let digest = digest(&received);
    if port == DIGEST {
        connection.write_all(digest.as_bytes()).await.unwrap();
    }
    if port != EARLY && ended.is_ok() {
        connection.shutdown().await.unwrap();
    }
    // The test may not ask.
    let _ = seen.send(ended.ok().map(|()| digest));
}

/// Uses every server but [`ABORT`]; `open` connects, or returns the status that refused it.
pub(crate) async fn use_all<C: Connection>(
    open: impl AsyncFn(u16) -> Result<C, u16>,
    seen: &mut mpsc::UnboundedReceiver<Seen>,
) {
    server_ends_first(&open, seen).await;
    use_most(open, seen).await;
}

/// The server's half ends first: what the client sends then arrives all the same.
async fn server_ends_first<C: Connection>(
    open: &impl AsyncFn(u16) -> Result<C, u16>,
    seen: &mut mpsc::UnboundedReceiver<Seen>,
) {
    let (sent, mut received) = (random(1_000_003, 3), Vec::new());
    let mut connection = open(EARLY).await.unwrap();
    soon(connection.read_to_end(&mut received)).await.unwrap();
    assert!(received == early(), "{} bytes", received.len());
    connection.write_all(&sent).await.unwrap();
    connection.shutdown().await.unwrap();
    assert_eq!(soon(seen.recv()).await.unwrap(), Some(digest(&sent)), "early");
}

/// A server's reset is not taken for its end.
pub(crate) async fn server_resets<C: Connection>(open: impl AsyncFn(u16) -> Result<C, u16>) {
    let mut connection = open(ABORT).await.unwrap();
    connection.write_all(b"x").await.unwrap();
    let ended = soon(connection.read(&mut [0])).await;
    assert!(ended.is_err(), "the server's reset: {ended:?}");
}

/// A client's reset is not taken for its end.
pub(crate) async fn client_resets(
    open: impl AsyncFn(u16) -> Result<TcpStream, u16>,
    seen: &mut mpsc::UnboundedReceiver<Seen>,
) {
    let mut connection = open(ECHO).await.unwrap();
    connection.write_all(b"x").await.unwrap();
    soon(connection.read_exact(&mut [0])).await.unwrap();
    abort(connection);
    assert_eq!(soon(seen.recv()).await.unwrap(), None, "the client's reset");
}

/// Uses every server but [`EARLY`] and [`ABORT`].
pub(crate) async fn use_most<C: Connection>(
    open: impl AsyncFn(u16) -> Result<C, u16>,
    seen: &mut mpsc::UnboundedReceiver<Seen>,
) {
    let mut seen = async || soon(seen.recv()).await.unwrap();
    // Bulk in both directions at once.
    soon(echo(open(ECHO).await.unwrap(), random(5_000_000, 1))).await;
    assert_eq!(seen().await, Some(digest(&random(5_000_000, 1))), "echo");
    // The client's half ends first: what follows comes back all the same.
    let (sent, mut answer) = (random(1_000_003, 2), String::new());
    let mut connection = open(DIGEST).await.unwrap();
    connection.write_all(&sent).await.unwrap();
    connection.shutdown().await.unwrap();
    soon(connection.read_to_string(&mut answer)).await.unwrap();
    assert_eq!((seen().await, answer), (Some(digest(&sent)), digest(&sent)), "digest");
    assert_eq!(open(REFUSED).await.err(), Some(503));
    // Many at once, of sizes around those of frames and windows.
    let sizes = [0, 1, 16_383, 16_384, 16_385, 65_535, 65_536, 300_000];
    let many = (0..64).map(async |n| {
        echo(open(ECHO).await.unwrap(), random(sizes[n % sizes.len()], n as u64)).await;
    });
    for _ in soon(join_all(many)).await {
        assert!(seen().await.is_some());
    }
}

/// Bulk in both directions on several connections, none of which ends: for peers that do not pass on a half's end.
#[cfg(feature = "programs")]
pub(crate) async fn exchange<C: Connection>(open: impl AsyncFn(u16) -> Result<C, u16>) {
    let all = [5_000_000, 300_000, 300_001, 1].into_iter().map(async |size| {
        let (mut read, mut write) = tokio::io::split(open(ECHO).await.unwrap());
        let (sent, mut received) = (random(size, size as u64), vec![0; size]);
        let (sending, receiving) = tokio::join!(write.write_all(&sent), read.read_exact(&mut received));
        assert!(sending.is_ok() && receiving.is_ok() && received == sent, "{size}");
    });
    soon(join_all(all)).await;
    assert_eq!(open(REFUSED).await.err(), Some(503));
}

async fn echo(connection: impl Connection, sent: Vec<u8>) {
    let (mut read, mut write) = tokio::io::split(connection);
    let mut received = Vec::new();
    let send = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let (_, done) = tokio::join!(send, read.read_to_end(&mut received));
    done.unwrap();
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
}
