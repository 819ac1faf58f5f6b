//! The sample's server: `GET /hello` tells the version and the pod, as Istio's sample of that name does. After
//! SIGTERM it drains: it accepts connections for a while, since endpoints are not yet updated everywhere, closes each
//! with its next response, and ends with the last one.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use isthmus_rt::task::Tasks;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How long connections may take to finish once no new one is taken.
const FINISH: Duration = Duration::from_secs(5);

/// What it tells and where.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The version to tell.
    #[arg(long)]
    version: String,
    /// The port to listen on.
    #[arg(long, default_value_t = 5000)]
    port: u16,
    /// The instance to tell; the pod's name.
    #[arg(long)]
    instance: String,
    /// Seconds for which connections are still taken after a SIGTERM.
    #[arg(long, default_value_t = 0)]
    drain: u64,
}

/// How far the end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// Every answer is its connection's last.
    Draining,
    /// Nothing new is taken and what is idle is closed.
    Ending,
}

/// Serves until a SIGTERM, and then as long as that takes.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let addr = SocketAddr::from((Ipv4Addr::UNSPECIFIED, options.port));
    let listener = TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr}"))?;
    println!("version {} listens on {addr}", options.version);
    let text = format!("Hello version: {}, instance: {}\n", options.version, options.instance);
    let mut told = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let told = async {
        // There is always another one that could come.
        let _ = told.recv().await;
        println!("told to end: connections are taken for {} s more", options.drain);
    };
    let late = async { tokio::time::sleep(Duration::from_secs(options.drain)).await };
    serve(listener, text, told, late).await
}

/// Drains when `told` resolves, and ends when then `late` does.
async fn serve(
    listener: TcpListener,
    text: String,
    told: impl Future<Output = ()>,
    late: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let (phase, watched) = watch::channel(Phase::Serving);
    let server = Server { text: text.into(), phase: watched, tasks: Tasks::new("helloworld") };
    let end = async {
        told.await;
        phase.send_replace(Phase::Draining);
        late.await;
    };
    tokio::select! {
        refused = server.take(&listener) => return refused,
        () = end => {}
    }
    // Those that have connected by now think that they were taken.
    while let Some(taken) = listener.accept().now_or_never() {
        server.start(taken.context("cannot accept")?);
    }
    drop(listener);
    phase.send_replace(Phase::Ending);
    if tokio::time::timeout(FINISH, server.tasks.wait()).await.is_err() {
        println!("{} connections do not end", server.tasks.len());
    }
    Ok(())
}

struct Server {
    text: Arc<str>,
    phase: watch::Receiver<Phase>,
    tasks: Tasks,
}

// === impl Server ===

impl Server {
    async fn take(&self, listener: &TcpListener) -> anyhow::Result<()> {
        loop {
            self.start(listener.accept().await.context("cannot accept")?);
        }
    }

    fn start(&self, (stream, peer): (TcpStream, SocketAddr)) {
        let (text, phase) = (Arc::clone(&self.text), self.phase.clone());
        self.tasks.spawn("connection", connection(stream, peer, text, phase));
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, text: Arc<str>, phase: watch::Receiver<Phase>) {
    let mut ending = phase.clone();
    let was_asked = AtomicBool::new(false);
    let service = service_fn(|request: Request<Incoming>| {
        was_asked.store(true, Ordering::Relaxed);
        println!("{peer} {} {}", request.method(), request.uri());
        let mut answer = answer(request.uri().path(), &text);
        if *phase.borrow() >= Phase::Draining {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    tokio::select! {
        // A client that closes its connection is no error of the server.
        _ = &mut served => return,
        _ = ending.wait_for(|phase| *phase == Phase::Ending) => {}
    }
    // One that was never asked anything has its first question on the way; the answer to that is its last.
    if was_asked.load(Ordering::Relaxed) {
        served.as_mut().graceful_shutdown();
    }
    let _ = served.await;
}

fn answer(path: &str, text: &str) -> Response<Full<Bytes>> {
    let (status, body) = match path {
        "/hello" => (StatusCode::OK, text),
        "/health" | "/healthz" => (StatusCode::OK, "ok\n"),
        _ => (StatusCode::NOT_FOUND, "not found\n"),
    };
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::http::{self, KeptConnection};

    /// Makes something happen when it is used.
    type Order = oneshot::Sender<()>;

    /// A server, what tells it to drain and then to end, and its task.
    async fn server() -> (SocketAddr, [Order; 2], Tasks) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, (drain, drained), (end, ended)) =
            (listener.local_addr().unwrap(), oneshot::channel(), oneshot::channel());
        let tasks = Tasks::new("test");
        let ordered = |order: oneshot::Receiver<()>| async { order.await.unwrap_or(()) };
        tasks.spawn("server", async move {
            serve(listener, "Hello\n".to_owned(), ordered(drained), ordered(ended)).await.unwrap();
        });
        (addr, [drain, end], tasks)
    }

    #[tokio::test]
    async fn hello_tells_version_and_instance() {
        let (addr, _orders, _tasks) = server().await;
        for (path, status, body) in
            [("/hello", 200, "Hello\n"), ("/healthz", 200, "ok\n"), ("/x", 404, "not found\n")]
        {
            let stream = TcpStream::connect(addr).await.unwrap();
            let got = http::get(stream, "test", path).await.unwrap();
            assert_eq!((got.status, &got.body[..]), (status, body.as_bytes()));
        }
    }

    #[tokio::test]
    async fn who_is_told_to_end_answers_for_a_while_and_closes_with_each_answer() {
        let (addr, [drain, end], tasks) = server().await;
        let own = Tasks::new("client");
        let open =
            async || KeptConnection::open(TcpStream::connect(addr).await.unwrap(), &own).await.unwrap();
        let (mut busy, mut idle) = (open().await, open().await);
        for kept in [&mut busy, &mut idle] {
            kept.get("test", "/hello").await.unwrap();
            assert!(kept.is_open());
        }
        drain.send(()).unwrap();
        while busy.is_open() {
            assert_eq!(busy.get("test", "/hello").await.unwrap().status, 200);
        }
        assert!(idle.is_open(), "what is idle may send one more request");
        let late = http::get(TcpStream::connect(addr).await.unwrap(), "test", "/hello").await.unwrap();
        assert_eq!(late.status, 200);
        let waiting = TcpStream::connect(addr).await.unwrap();
        end.send(()).unwrap();
        assert_eq!(http::get(waiting, "test", "/hello").await.unwrap().status, 200);
        tasks.wait().await;
        assert!(TcpStream::connect(addr).await.is_err());
        assert!(idle.get("test", "/hello").await.is_err());
    }
}
