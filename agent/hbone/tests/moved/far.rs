//! The peer of the tunnel that is moved: our own stack, or rustls and h2. Its streams are byte streams for the test.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use isthmus_hbone::session::TlsSession;
use isthmus_hbone::{Head, Settings, Stream, client, server};
use isthmus_kit::tls::{self, TlsStream};
use isthmus_rt::drain;
use isthmus_rt::task::Tasks;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::DEADLINE;

/// What the peer is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stack {
    Ours,
    Oracle,
}

const BUFFER: usize = 32 * 1024;
/// Bytes after which the oracle changes its key, and asks for ours to be changed.
const KEY_BYTES: usize = 300_000;

/// A server whose streams come out of the channel, in the order of their requests.
pub(crate) async fn server(
    stack: Stack,
    tcp: TcpStream,
    config: Arc<ServerConfig>,
    tasks: &Tasks,
) -> mpsc::UnboundedReceiver<DuplexStream> {
    let (found, streams) = mpsc::unbounded_channel();
    match stack {
        Stack::Ours => {
            let session = TlsSession::accept(config, tcp, DEADLINE).await.unwrap();
            let (drain, watch) = drain::channel();
            let spawner = tasks.clone();
            tasks.spawn("server", async move {
                let _drain = drain;
                let settings = Settings::default();
                let ended = server::serve(session, &settings, watch, |request| {
                    let _ = found.send(bridge(request.accept(None).unwrap(), &spawner));
                });
                ended.await.unwrap();
            });
        }
        Stack::Oracle => {
            let session = KeyUpdates { io: tls::accept(config, tcp).await.unwrap(), written: 0 };
            let spawner = tasks.clone();
            tasks.spawn("server", async move {
                let mut h2 = h2::server::Builder::new()
                    .initial_window_size(200_000)
                    .initial_connection_window_size(8 << 20)
                    .handshake::<_, Bytes>(session)
                    .await
                    .unwrap();
                while let Some(request) = h2.accept().await {
                    let (request, mut respond) = request.unwrap();
                    let response = http::Response::builder().status(200).body(()).unwrap();
                    let send = respond.send_response(response, false).unwrap();
                    let _ = found.send(bridge_h2(send, request.into_body(), &spawner));
                }
            });
        }
    }
    streams
}

/// A client that can open streams.
pub(crate) enum Client {
    Ours(client::Tunnel, Tasks),
    Oracle(h2::client::SendRequest<Bytes>, Tasks),
}

impl Client {
    pub(crate) async fn connect(
        stack: Stack,
        tcp: TcpStream,
        config: Arc<ClientConfig>,
        tasks: &Tasks,
    ) -> Self {
        match stack {
            Stack::Ours => {
                let session = TlsSession::connect(config, tcp, DEADLINE).await.unwrap();
                Self::Ours(client::start(session, &Settings::default(), tasks).unwrap(), tasks.clone())
            }
            Stack::Oracle => {
                let session = KeyUpdates { io: tls::connect(config, tcp).await.unwrap(), written: 0 };
                let (send, connection) = h2::client::Builder::new()
                    .initial_window_size(200_000)
                    .initial_connection_window_size(8 << 20)
                    .handshake::<_, Bytes>(session)
                    .await
                    .unwrap();
                tasks.spawn("client", async move { connection.await.unwrap() });
                Self::Oracle(send, tasks.clone())
            }
        }
    }

    pub(crate) async fn open(&mut self, authority: &str) -> DuplexStream {
        match self {
            Self::Ours(tunnel, tasks) => {
                let stream = tunnel.open(&Head::new(authority.parse().unwrap())).await.unwrap().0;
                bridge(stream, tasks)
            }
            Self::Oracle(send, tasks) => {
                let request = http::Request::builder().method("CONNECT").uri(authority).body(()).unwrap();
                let mut ready = send.clone().ready().await.unwrap();
                let (response, body) = ready.send_request(request, false).unwrap();
                bridge_h2(body, response.await.unwrap().into_body(), tasks)
            }
        }
    }
}

/// A stream of ours as a byte stream.
fn bridge(stream: Stream, tasks: &Tasks) -> DuplexStream {
    let (near, far) = duplex(BUFFER);
    let (mut read, mut write) = tokio::io::split(far);
    let (mut recv, mut send) = stream.split();
    tasks.spawn("to the tunnel", async move {
        let mut buffer = vec![0; BUFFER];
        loop {
            match read.read(&mut buffer).await.unwrap() {
                0 => return send.finish().unwrap(),
                count => send.send(&buffer[..count]).await.unwrap(),
            }
        }
    });
    tasks.spawn("from the tunnel", async move {
        while let Some(data) = recv.recv().await {
            let data = data.unwrap();
            write.write_all(&data).await.unwrap();
            recv.release(data.len());
        }
        write.shutdown().await.unwrap();
    });
    near
}

/// A stream of h2 as a byte stream.
fn bridge_h2(mut send: h2::SendStream<Bytes>, mut recv: h2::RecvStream, tasks: &Tasks) -> DuplexStream {
    let (near, far) = duplex(BUFFER);
    let (mut read, mut write) = tokio::io::split(far);
    tasks.spawn("to the tunnel", async move {
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = read.read(&mut buffer).await.unwrap();
            if count == 0 {
                return send.send_data(Bytes::new(), true).unwrap();
            }
            let mut left = Bytes::copy_from_slice(&buffer[..count]);
            while !left.is_empty() {
                send.reserve_capacity(left.len());
                let room = std::future::poll_fn(|cx| send.poll_capacity(cx)).await.unwrap().unwrap();
                let now = left.split_to(room.min(left.len()));
                send.send_data(now, false).unwrap();
            }
        }
    });
    tasks.spawn("from the tunnel", async move {
        while let Some(data) = recv.data().await {
            let data = data.unwrap();
            write.write_all(&data).await.unwrap();
            let _ = recv.flow_control().release_capacity(data.len());
        }
        write.shutdown().await.unwrap();
    });
    near
}

/// rustls' session, which updates its keys again and again.
struct KeyUpdates {
    io: TlsStream<TcpStream>,
    written: usize,
}

impl AsyncRead for KeyUpdates {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for KeyUpdates {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        if self.written > KEY_BYTES {
            self.written = 0;
            match &mut self.io {
                TlsStream::Client(io) => io.get_mut().1.refresh_traffic_keys().unwrap(),
                TlsStream::Server(io) => io.get_mut().1.refresh_traffic_keys().unwrap(),
            }
        }
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(count)) = written {
            self.written += count;
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
