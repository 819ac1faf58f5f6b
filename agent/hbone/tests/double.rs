//! Double HBONE: TLS and HTTP/2 inside a stream of a tunnel that runs over TLS itself.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

#[path = "support/pair.rs"]
mod pair;
#[path = "support/tls.rs"]
mod test_tls;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use isthmus_hbone::session::TlsSession;
use isthmus_hbone::{
    Head, Link, PeerRevoked, Settings, Stream, StreamError, StreamIo, TlsError, TunnelError, client, copy,
    server,
};
use isthmus_kit::tls;
use isthmus_rt::drain;
use isthmus_rt::task::Tasks;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::mpsc;

use pair::{soon, tcp_pair};
use test_tls::TestTls;

const DEADLINE: Duration = Duration::from_secs(10);

fn configs() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let TestTls { client, server, .. } = TestTls::new();
    (client, server)
}

/// A tunnel over TLS over the given transports: the client's first stream and the server's.
async fn secured<N, F>(near: N, far: F, tasks: &Tasks) -> (Stream, Stream)
where
    N: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (client_config, server_config) = configs();
    let (hand_out, mut requests) = mpsc::unbounded_channel();
    let (_drain, watch) = drain::channel();
    tasks.spawn("server", async move {
        let _held = _drain;
        let tls = TlsSession::accept(server_config, far, DEADLINE).await.unwrap();
        assert_eq!(tls.state().alpn_protocol(), Some(&b"h2"[..]));
        let settings = Settings::default();
        let _ = server::serve(tls, &settings, watch, |request| {
            let _ = hand_out.send(request);
        })
        .await;
    });
    let tls = TlsSession::connect(client_config, near, DEADLINE).await.unwrap();
    let tunnel = client::start(tls, &Settings::default(), tasks).unwrap();
    let head = Head::new("h.sample.svc.cluster.local:5000".parse().unwrap());
    let accept = async { requests.recv().await.unwrap().accept(None).unwrap() };
    let (opened, far) = tokio::join!(tunnel.open(&head), accept);
    (opened.unwrap().0, far)
}

#[tokio::test]
async fn data_and_ends_pass_through_both_layers() {
    let tasks = Tasks::new("test");
    let (near, far) = tcp_pair().await;
    let (outer_near, outer_far) = soon(secured(near, far, &tasks)).await;
    let inner = secured(StreamIo::new(outer_near), StreamIo::new(outer_far), &tasks);
    let (near, far) = soon(inner).await;

    let (mut client, ours) = tcp_pair().await;
    let (theirs, mut server) = tcp_pair().await;
    tasks.spawn("client's copy", async move { copy::tunnel(ours, near, Arc::new(())).await });
    tasks.spawn("server's copy", async move { copy::tunnel(theirs, far, Arc::new(())).await });
    let request: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
    let (mut got, mut answer) = (Vec::new(), Vec::new());
    let ask = async {
        client.write_all(&request).await.unwrap();
        client.shutdown().await.unwrap();
        client.read_to_end(&mut answer).await.unwrap();
    };
    let reply = async {
        server.read_to_end(&mut got).await.unwrap();
        server.write_all(&got).await.unwrap();
        server.shutdown().await.unwrap();
    };
    soon(async { tokio::join!(ask, reply) }).await;
    assert!(got == request && answer == request);
}

#[tokio::test]
async fn reset_of_the_outer_stream_is_not_the_end_of_the_inner_one() {
    let tasks = Tasks::new("test");
    let (near, far) = tcp_pair().await;
    let (outer_near, mut outer_far) = soon(secured(near, far, &tasks)).await;
    let (gateway, mut target) = tokio::io::duplex(1 << 16);
    // A gateway that resets the stream after the handshake.
    tasks.spawn("gateway", async move {
        let (mut read, mut write) = tokio::io::split(gateway);
        let mut buffer = [0; 4096];
        let mut passed = 0;
        while passed < 6000 {
            tokio::select! {
                data = outer_far.recv() => {
                    let data = data.unwrap().unwrap();
                    outer_far.release(data.len());
                    write.write_all(&data).await.unwrap();
                }
                n = read.read(&mut buffer) => {
                    let n = n.unwrap();
                    passed += n;
                    outer_far.send(&buffer[..n]).await.unwrap();
                }
            }
        }
        outer_far.reset(isthmus_hbone::Reason::CONNECT_ERROR);
    });
    let (client_config, server_config) = configs();
    let serve = async {
        let mut tls = tls::accept(server_config, &mut target).await.unwrap();
        tls.write_all(&[7; 8000]).await.unwrap();
        tls.flush().await.unwrap();
    };
    let ask = async {
        let mut tls = tls::connect(client_config, StreamIo::new(outer_near)).await.unwrap();
        let mut all = Vec::new();
        tls.read_to_end(&mut all).await.unwrap_err().kind()
    };
    let ((), kind) = soon(async { tokio::join!(serve, ask) }).await;
    assert_eq!(kind, io::ErrorKind::ConnectionReset);
}

#[tokio::test(start_paused = true)]
async fn handshakes_have_a_deadline_and_typed_errors() {
    let (client_config, server_config) = configs();
    let (near, _far) = tokio::io::duplex(1 << 16);
    let error = TlsSession::connect(Arc::clone(&client_config), near, DEADLINE).await.unwrap_err();
    assert!(matches!(error, TlsError::Timeout(DEADLINE)), "{error}");
    let (_near, far) = tokio::io::duplex(1 << 16);
    let error = TlsSession::accept(server_config, far, DEADLINE).await.unwrap_err();
    assert!(matches!(error, TlsError::Timeout(DEADLINE)), "{error}");

    // A certificate that the client does not trust.
    let (_, untrusted) = configs();
    let (near, far) = tokio::io::duplex(1 << 16);
    let (connected, accepted) = tokio::join!(
        TlsSession::connect(client_config, near, DEADLINE),
        TlsSession::accept(untrusted, far, DEADLINE)
    );
    let (connected, accepted) = (connected.unwrap_err(), accepted.unwrap_err());
    assert!(matches!(connected, TlsError::Tls(rustls::Error::InvalidCertificate(_))), "{connected}");
    assert!(matches!(accepted, TlsError::Tls(rustls::Error::AlertReceived(_))), "{accepted}");
    assert!(!connected.is_retryable());
}

/// A transport whose peer can be revoked. It is not woken by that: the next read or write fails.
struct RevocableIo<S> {
    io: S,
    revoked: Arc<AtomicBool>,
}

impl<S> RevocableIo<S> {
    fn ensure_not_revoked(&mut self) -> io::Result<()> {
        if self.revoked.load(Ordering::Relaxed) { Err(PeerRevoked.into()) } else { Ok(()) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for RevocableIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.ensure_not_revoked()?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for RevocableIo<S> {
    isthmus_rt::io::forward_write!(io, before = ensure_not_revoked);
    isthmus_rt::io::forward_shutdown!(io, before = ensure_not_revoked);
}

/// A tunnel without TLS over the given transports: both ends of a stream.
async fn plain_tunnel<N, F>(near: N, far: F, tasks: &Tasks) -> (Stream, Stream)
where
    N: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (hand_out, mut requests) = mpsc::unbounded_channel();
    let (drain, watch) = drain::channel();
    tasks.spawn("server", async move {
        let _drain = drain;
        let _ = server::serve(Link::plain(far), &Settings::default(), watch, |request| {
            let _ = hand_out.send(request);
        })
        .await;
    });
    let tunnel = client::start(Link::plain(near), &Settings::default(), tasks).unwrap();
    let head = pair::head();
    let accept = async { requests.recv().await.unwrap().accept(None).unwrap() };
    let (opened, far) = tokio::join!(tunnel.open(&head), accept);
    (opened.unwrap().0, far)
}

async fn assert_revoked(stream: &mut Stream) {
    let error = soon(stream.recv()).await.unwrap().unwrap_err();
    assert_eq!(error, StreamError::Lost(TunnelError::PeerRevoked));
    assert!(error.is_peer_revoked());
    let error = stream.send(b"x").await.unwrap_err();
    assert_eq!(error, StreamError::Lost(TunnelError::PeerRevoked));
}

#[tokio::test]
async fn revocation_on_the_transport_ends_the_streams_of_client_and_server_with_a_typed_error() {
    for revoke_client in [true, false] {
        let tasks = Tasks::new("test");
        let (near, far) = tcp_pair().await;
        let revoked = [false, false].map(|revoked| Arc::new(AtomicBool::new(revoked)));
        let near = RevocableIo { io: near, revoked: Arc::clone(&revoked[0]) };
        let far = RevocableIo { io: far, revoked: Arc::clone(&revoked[1]) };
        let (mut near, mut far) = soon(plain_tunnel(near, far, &tasks)).await;
        revoked[usize::from(!revoke_client)].store(true, Ordering::Relaxed);
        // The other side sends, so that the transport is read.
        let (ours, theirs) = if revoke_client { (&mut near, &mut far) } else { (&mut far, &mut near) };
        theirs.send(b"wake up").await.unwrap();
        assert_revoked(ours).await;
        let error = soon(theirs.recv()).await.unwrap().unwrap_err();
        assert!(!error.is_peer_revoked(), "the other side knows nothing of it: {error}");
    }
}

#[tokio::test]
async fn revocation_of_the_outer_peer_ends_the_nested_tunnel_with_the_same_typed_error() {
    let tasks = Tasks::new("test");
    let (near, far) = tcp_pair().await;
    let revoked = Arc::new(AtomicBool::new(false));
    let near = RevocableIo { io: near, revoked: Arc::clone(&revoked) };
    let (outer_near, outer_far) = soon(plain_tunnel(near, far, &tasks)).await;
    // With TLS between the two, as in double HBONE.
    let inner = secured(StreamIo::new(outer_near), StreamIo::new(outer_far), &tasks);
    let (mut near, mut far) = soon(inner).await;
    revoked.store(true, Ordering::Relaxed);
    far.send(b"wake up").await.unwrap();
    assert_revoked(&mut near).await;
}
