//! Our ends of a tunnel, with the copy to a socket of an application at each stream.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_hbone::client::{self, Tunnel};
use isthmus_hbone::server::{self, Request};
use isthmus_hbone::session::TlsSession;
use isthmus_hbone::{ConnectStatus, Head, OpenError, Settings, copy};
use isthmus_rt::drain;
use isthmus_rt::task::Tasks;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::applications::{self, ABORT, REFUSED, Seen};
use crate::pair::tcp_pair;

const DEADLINE: Duration = Duration::from_secs(10);

/// A tunnel to a peer.
pub(crate) async fn connect(
    peer: SocketAddr,
    tls: &Arc<ClientConfig>,
    settings: &Settings,
    tasks: &Tasks,
) -> Tunnel {
    let tcp = TcpStream::connect(peer).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let session = TlsSession::connect(Arc::clone(tls), tcp, DEADLINE).await.unwrap();
    client::start(session, settings, tasks).unwrap()
}

/// An application's connection through a tunnel, or the status that refused it.
pub(crate) async fn open(tunnel: &Tunnel, tasks: &Tasks, port: u16) -> Result<TcpStream, u16> {
    let head = Head::new(format!("10.0.0.1:{port}").parse().unwrap());
    match tunnel.open(&head).await {
        Ok((stream, _)) => {
            let (app, tcp) = tcp_pair().await;
            tasks.spawn("copy", copy::tunnel(tcp, stream, Arc::new(())));
            Ok(app)
        }
        Err(OpenError::Status(status)) => Err(status.as_u16()),
        Err(error) => panic!("{error}"),
    }
}

/// Serves tunnels in the background; `answer` gets each request.
pub(crate) async fn listen(
    tls: &Arc<ServerConfig>,
    settings: &Settings,
    tasks: &Tasks,
    answer: impl Fn(Request) + Clone + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tls, settings, connections) = (Arc::clone(tls), settings.clone(), tasks.clone());
    tasks.spawn("listener", async move {
        let (_drain, watch) = drain::channel();
        while let Ok((tcp, _)) = listener.accept().await {
            let (tls, settings, answer) = (Arc::clone(&tls), settings.clone(), answer.clone());
            let watch = watch.clone();
            connections.spawn("connection", async move {
                tcp.set_nodelay(true).unwrap();
                // The peer may be one that gives up.
                let Ok(session) = TlsSession::accept(tls, tcp, DEADLINE).await else { return };
                let _ = server::serve(session, &settings, watch, answer).await;
            });
        }
    });
    address
}

/// Serves tunnels to the applications.
pub(crate) async fn serve_applications(
    tls: &Arc<ServerConfig>,
    settings: &Settings,
    tasks: &Tasks,
) -> (SocketAddr, mpsc::UnboundedReceiver<Seen>) {
    let (seen, receiver) = mpsc::unbounded_channel();
    let own = tasks.clone();
    let answer = move |request: Request| {
        let port = request.head.as_ref().unwrap().authority.port();
        if port == REFUSED {
            return request.reject(ConnectStatus::SERVICE_UNAVAILABLE);
        }
        let (stream, seen, copies) = (request.accept(None).unwrap(), seen.clone(), own.clone());
        own.spawn("application", async move {
            let (mut app, tcp) = tcp_pair().await;
            copies.spawn("copy", copy::tunnel(tcp, stream, Arc::new(())));
            if port == ABORT {
                app.read_exact(&mut [0]).await.unwrap();
                return applications::abort(app);
            }
            applications::serve(port, app, seen).await;
        });
    };
    (listen(tls, settings, tasks, answer).await, receiver)
}
