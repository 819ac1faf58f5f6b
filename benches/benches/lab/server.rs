//! The servers of the load, in the server's pod, for as long as the process lives.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context as _, Result};
use isthmus_kit::lab::{Host, in_ns};
use isthmus_rt::task::Tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Longest wait for anything on a connection.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// A write or read of bulk.
pub(crate) const CHUNK: usize = 256 * 1024;
/// Bytes of a small request and of its answer.
pub(crate) const REQUEST: usize = 100;
pub(crate) const ANSWER: usize = 1024;
const HEADER: usize = 9;

/// Bytes received so far, of all connections.
pub(crate) type Received = Arc<AtomicU64>;

/// Ends the sources. A client that just closes would leave it to the agents when the server hears of it.
pub(crate) type Stop = Arc<AtomicBool>;

/// What the blocking server does on a connection; the client's first bytes say it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Task {
    /// Receives until the client has sent its FIN.
    Sink,
    /// Sends until it is stopped.
    Source,
    /// Answers requests of the first size with the second.
    Answer(u32, u32),
}

impl Task {
    pub(crate) fn header(self) -> [u8; HEADER] {
        let (kind, request, answer) = match self {
            Self::Sink => (0, 0, 0),
            Self::Source => (1, 0, 0),
            Self::Answer(request, answer) => (2, request, answer),
        };
        let mut header = [kind; HEADER];
        header[1..5].copy_from_slice(&request.to_be_bytes());
        header[5..].copy_from_slice(&answer.to_be_bytes());
        header
    }

    fn parse(header: [u8; HEADER]) -> Option<Self> {
        let [kind, sizes @ ..] = header;
        let both = u64::from_be_bytes(sizes);
        match kind {
            0 => Some(Self::Sink),
            1 => Some(Self::Source),
            2 => Some(Self::Answer(u32::try_from(both >> 32).ok()?, u32::try_from(both & 0xffff_ffff).ok()?)),
            _ => None,
        }
    }
}

/// A connection to the blocking server.
pub(crate) fn connect(client: &Host, server: SocketAddr, task: Task) -> Result<TcpStream> {
    let mut stream = client.netns.run_thread(|| TcpStream::connect_timeout(&server, PATIENCE))??;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&task.header())?;
    Ok(stream)
}

/// A server with a thread for each connection.
pub(crate) fn blocking(host: &Host, port: u16, received: &Received, stop: &Stop) -> Result<SocketAddr> {
    let address = SocketAddr::new(host.v4.into(), port);
    let listener = host.netns.run(|| TcpListener::bind(address))?.context("listening")?;
    let (received, stop) = (Arc::clone(received), Arc::clone(stop));
    std::thread::Builder::new().name("server".to_owned()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let (received, stop) = (Arc::clone(&received), Arc::clone(&stop));
            // The client reports what fails.
            let _ = std::thread::Builder::new()
                .name("served".to_owned())
                .spawn(move || serve(stream, &received, &stop));
        }
    })?;
    Ok(address)
}

fn serve(mut stream: TcpStream, received: &AtomicU64, stop: &AtomicBool) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    match Task::parse(header).ok_or(ErrorKind::InvalidData)? {
        Task::Sink => receive(&mut stream, received),
        Task::Source => send(&mut stream, stop),
        Task::Answer(request, answer) => {
            let (mut request, answer) = (vec![0; request as usize], vec![7; answer as usize]);
            loop {
                stream.read_exact(&mut request)?;
                stream.write_all(&answer)?;
            }
        }
    }
}

/// Sends until it is stopped.
pub(crate) fn send(stream: &mut TcpStream, stop: &AtomicBool) -> io::Result<()> {
    let chunk = vec![7; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Write)
}

/// Receives until the peer's FIN, and counts.
pub(crate) fn receive(stream: &mut TcpStream, received: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => received.fetch_add(count as u64, Ordering::Relaxed),
        };
    }
}

/// A server of small requests: one thread for any number of connections.
pub(crate) fn small(host: &Host, port: u16) -> Result<SocketAddr> {
    many(host, port, answer)
}

/// A server of HTTP/1.1 requests without a body, for tools: one thread for any number of connections. Started once.
pub(crate) fn http(host: &Host, port: u16) -> Result<SocketAddr> {
    let address = SocketAddr::new(host.v4.into(), port);
    match host.netns.run_thread(|| TcpStream::connect_timeout(&address, PATIENCE))? {
        Ok(_) => Ok(address),
        Err(_) => many(host, port, answer_http),
    }
}

fn many<F>(host: &Host, port: u16, serve: fn(tokio::net::TcpStream) -> F) -> Result<SocketAddr>
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let address = SocketAddr::new(host.v4.into(), port);
    let (ready, is_ready) = mpsc::channel();
    let netns = Arc::clone(&host.netns);
    let run = move || {
        in_ns(&netns, || async {
            let listener = tokio::net::TcpListener::bind(address).await?;
            let _ = ready.send(());
            let connections = Tasks::new("small requests");
            loop {
                let (stream, _) = listener.accept().await?;
                connections.spawn("served", async move {
                    // The client reports what fails.
                    let _ = serve(stream).await;
                });
            }
            #[allow(unreachable_code)]
            Ok(())
        })
    };
    std::thread::Builder::new().name("small server".to_owned()).spawn(run)?;
    is_ready.recv_timeout(PATIENCE).context("the small server does not listen")?;
    Ok(address)
}

async fn answer(mut stream: tokio::net::TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = [0; REQUEST];
    loop {
        stream.read_exact(&mut request).await?;
        stream.write_all(&[7; ANSWER]).await?;
    }
}

async fn answer_http(mut stream: tokio::net::TcpStream) -> io::Result<()> {
    const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\n";
    stream.set_nodelay(true)?;
    let answer = [HEAD.as_bytes(), &[b'7'; ANSWER]].concat();
    let mut request = Vec::new();
    loop {
        request.clear();
        while !request.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        }
        stream.write_all(&answer).await?;
    }
}
