//! Both ends of a tunnel in one process, and connected TCP sockets.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use isthmus_hbone::client::{self, Tunnel};
use isthmus_hbone::copy::ByteCounter;
use isthmus_hbone::server::{self, Request};
use isthmus_hbone::{Head, Settings, Stream, Transport};
use isthmus_rt::drain::{self, Drain};
use isthmus_rt::task::Tasks;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// A tunnel with both its ends.
pub(crate) struct Pair {
    pub(crate) tunnel: Tunnel,
    pub(crate) requests: mpsc::UnboundedReceiver<Request>,
    pub(crate) drain: Drain,
    pub(crate) tasks: Tasks,
}

impl Pair {
    pub(crate) async fn new() -> Self {
        Self::with(Settings::default()).await
    }

    pub(crate) async fn with(settings: Settings) -> Self {
        let (near, far) = tcp_pair().await;
        Self::over(near, far, settings).await
    }

    /// Over memory instead of a socket: a paused clock does not know of bytes in a socket.
    pub(crate) async fn in_memory(settings: Settings) -> Self {
        let (near, far) = tokio::io::duplex(1 << 20);
        Self::over(near, far, settings).await
    }

    pub(crate) async fn over<S: Transport>(near: S, far: S, settings: Settings) -> Self {
        let tasks = Tasks::new("test");
        let (drain, watch) = drain::channel();
        let (hand_out, requests) = mpsc::unbounded_channel();
        let theirs = settings.clone();
        tasks.spawn("server", async move {
            let _ = server::serve(far, &theirs, watch, |request| {
                let _ = hand_out.send(request);
            })
            .await;
        });
        let tunnel = client::start(near, &settings, &tasks).unwrap();
        Self { tunnel, requests, drain, tasks }
    }

    /// A stream: the client's end and the server's.
    pub(crate) async fn stream(&mut self) -> (Stream, Stream) {
        let head = head();
        let accept = async { self.requests.recv().await.unwrap().accept(None).unwrap() };
        let (near, far) = tokio::join!(self.tunnel.open(&head), accept);
        (near.unwrap().0, far)
    }
}

pub(crate) fn head() -> Head {
    Head::new("10.0.0.1:80".parse().unwrap())
}

/// Two ends of a TCP connection over loopback.
pub(crate) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connect = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(connect, listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap().0);
    for tcp in [&near, &far] {
        tcp.set_nodelay(true).unwrap();
    }
    (near, far)
}

/// Fails a step that hangs.
pub(crate) async fn soon<T>(step: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), step).await.expect("a step takes too long")
}

/// Adds up the bytes of a copy.
#[derive(Default)]
pub(crate) struct Counter {
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
}

impl ByteCounter for Counter {
    fn sent(&self, n: u64) {
        self.sent.fetch_add(n, Ordering::Relaxed);
    }
    fn received(&self, n: u64) {
        self.received.fetch_add(n, Ordering::Relaxed);
    }
}

impl Counter {
    pub(crate) fn both(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed))
    }
}
