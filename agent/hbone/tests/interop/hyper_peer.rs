//! hyper over rustls as the peer, in both roles. It ends what it drops, so that only our end can reset.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use isthmus_hbone::Settings;
use isthmus_kit::tls;
use isthmus_rt::task::Tasks;
use rustls::{ClientConfig, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::applications::{self, REFUSED, Seen, client_resets, server_resets, use_all};
use crate::ours;
use crate::tls::TestTls;

/// The peer's windows and frames; `None` lets it adapt its windows.
const SHAPES: [Option<(u32, u32)>; 3] = [None, Some((65_535, 16_384)), Some((1_000, 1_000_000))];

async fn serve_hyper(
    tls: Arc<ServerConfig>,
    shape: Option<(u32, u32)>,
    tasks: &Tasks,
) -> (SocketAddr, mpsc::UnboundedReceiver<Seen>) {
    let (seen, receiver) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let applications = tasks.clone();
    tasks.spawn("hyper's server", async move {
        let (tcp, _) = listener.accept().await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let io = TokioIo::new(tls::accept(tls, tcp).await.unwrap());
        let service = service_fn(move |request: Request<Incoming>| {
            let port = request.uri().port_u16().unwrap();
            let mut response = Response::new(Empty::<Bytes>::new());
            if port == REFUSED {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            } else {
                let seen = seen.clone();
                applications.spawn("application", async move {
                    let upgraded = hyper::upgrade::on(request).await.unwrap();
                    applications::serve(port, TokioIo::new(upgraded), seen).await;
                });
            }
            std::future::ready(Ok::<_, Infallible>(response))
        });
        let mut http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        match shape {
            None => http2.adaptive_window(true),
            Some((window, frame)) => http2.initial_stream_window_size(window).max_frame_size(frame),
        };
        http2.serve_connection(io, service).await
    });
    (address, receiver)
}

async fn connect_hyper(
    peer: SocketAddr,
    tls: Arc<ClientConfig>,
    shape: Option<(u32, u32)>,
    tasks: &Tasks,
) -> hyper::client::conn::http2::SendRequest<Empty<Bytes>> {
    let tcp = TcpStream::connect(peer).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let io = TokioIo::new(tls::connect(tls, tcp).await.unwrap());
    let mut http2 = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    match shape {
        None => http2.adaptive_window(true),
        Some((window, frame)) => http2.initial_stream_window_size(window).max_frame_size(frame),
    };
    let (sender, connection) = http2.handshake(io).await.unwrap();
    tasks.spawn("hyper's client", connection);
    sender
}

#[tokio::test]
async fn our_client_uses_hypers_server() {
    let made = TestTls::new();
    for shape in SHAPES {
        let tasks = Tasks::new("test");
        let (peer, mut seen) = serve_hyper(Arc::clone(&made.server), shape, &tasks).await;
        let tunnel = ours::connect(peer, &made.client, &Settings::default(), &tasks).await;
        let open = async |port| ours::open(&tunnel, &tasks, port).await;
        use_all(open, &mut seen).await;
        client_resets(open, &mut seen).await;
    }
}

#[tokio::test]
async fn hypers_client_uses_our_server() {
    let made = TestTls::new();
    for shape in SHAPES {
        let tasks = Tasks::new("test");
        let (peer, mut seen) = ours::serve_applications(&made.server, &Settings::default(), &tasks).await;
        let sender = connect_hyper(peer, Arc::clone(&made.client), shape, &tasks).await;
        let open = async |port: u16| {
            let request = Request::builder().method(Method::CONNECT).uri(format!("10.0.0.1:{port}"));
            let response = sender.clone().send_request(request.body(Empty::new()).unwrap()).await.unwrap();
            if response.status() != StatusCode::OK {
                return Err(response.status().as_u16());
            }
            Ok(TokioIo::new(hyper::upgrade::on(response).await.unwrap()))
        };
        use_all(&open, &mut seen).await;
        server_resets(open).await;
    }
}
