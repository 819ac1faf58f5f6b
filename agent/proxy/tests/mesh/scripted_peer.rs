//! Peers on port 15008 with scripted failures.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use isthmus_identity::{CertSource as _, Certificate};
use isthmus_kit::hbone::{HbonePeer, kind};
use isthmus_kit::tls;
use isthmus_model::SpiffeId;
use isthmus_rt::task::Tasks;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::test_mesh::{HBONE, TestMesh};

/// The failure of a scripted peer, on each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The port is closed.
    ConnectRefused,
    /// SYNs are dropped.
    ConnectTimeout,
    /// Accepts, and sends nothing in the TLS handshake.
    TlsTimeout,
    /// Resets the connection in the TLS handshake.
    TlsReset,
    /// Has a certificate of another identity.
    WrongIdentity,
    /// Answers CONNECT with a status.
    Status(&'static str),
    /// Resets the stream with REFUSED_STREAM.
    RefusedStream,
    /// Sends GOAWAY with a last stream id below the stream's.
    GoAway,
    /// Resets the stream with CANCEL.
    Cancel,
}

/// A scripted peer on port 15008 of an address.
pub(crate) struct ScriptedPeer {
    accepted: Arc<AtomicUsize>,
    _tasks: Tasks,
    _queued: Vec<TcpStream>,
    _listener: Option<TcpListener>,
}

impl ScriptedPeer {
    pub(crate) async fn start(network: &TestMesh, at: IpAddr, identity: &SpiffeId, failure: Failure) -> Self {
        let (accepted, tasks) = (Arc::new(AtomicUsize::new(0)), Tasks::new("peer"));
        let at = SocketAddr::new(at, HBONE);
        let mut peer =
            Self { accepted: Arc::clone(&accepted), _tasks: tasks, _queued: Vec::new(), _listener: None };
        match failure {
            Failure::ConnectRefused => {}
            Failure::ConnectTimeout => {
                let socket = TcpSocket::new_v4().unwrap();
                socket.bind(at).unwrap();
                peer._listener = Some(socket.listen(0).unwrap());
                // These fill the accept queue; the kernel drops further SYNs.
                loop {
                    let next = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(at)).await;
                    match next {
                        Ok(connected) => peer._queued.push(connected.unwrap()),
                        Err(_) => break,
                    }
                }
            }
            _ => {
                let shown = if failure == Failure::WrongIdentity {
                    "spiffe://cluster.local/ns/sample/sa/other".parse().unwrap()
                } else {
                    identity.clone()
                };
                let certificate = network.certs.certificate(&shown).await.unwrap();
                let listener = TcpListener::bind(at).await.unwrap();
                let connections = Tasks::new("peer");
                peer._tasks.spawn("peer", async move {
                    loop {
                        let (tcp, _) = listener.accept().await.unwrap();
                        accepted.fetch_add(1, Ordering::SeqCst);
                        let certificate = Arc::clone(&certificate);
                        connections.spawn("peer", async move { serve(tcp, &certificate, failure).await });
                    }
                });
            }
        }
        peer
    }

    /// Number of accepted connections.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

async fn serve(tcp: TcpStream, certificate: &Certificate, failure: Failure) {
    match failure {
        Failure::TlsTimeout => return std::future::pending().await,
        Failure::TlsReset => {
            tcp.readable().await.unwrap();
            return isthmus_sys::socket::reset_on_close(&tcp);
        }
        _ => {}
    }
    // The client refuses the handshake if the certificate is another identity's.
    let Ok(session) = tls::accept(certificate.server_tls().config(), tcp).await else {
        return;
    };
    let Ok(mut peer) = HbonePeer::server(session).await else { return };
    while let Ok(request) = peer.next(kind::HEADERS).await {
        let stream = request.stream;
        let done = match failure {
            Failure::Status(status) => peer.headers(stream, &[(":status", status)], true).await,
            Failure::RefusedStream => peer.reset(stream, 7).await,
            Failure::Cancel => peer.reset(stream, 8).await,
            Failure::GoAway => peer.goaway(0, 0).await,
            _ => Ok(()),
        };
        if done.is_err() {
            return;
        }
    }
}
