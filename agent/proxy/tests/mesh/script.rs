//! Peers on port 15008 that follow a script: they refuse, are silent, or say what they are told to say.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use isthmus_hbone::session::TlsSession;
use isthmus_identity::{CertSource as _, Certificate};
use isthmus_kit::hbone::{HbonePeer, kind};
use isthmus_model::SpiffeId;
use isthmus_rt::task::Tasks;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::world::{HBONE, Network, PATIENCE};

/// What a scripted peer does with each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Does {
    /// Nobody listens.
    Refuses,
    /// Nobody answers a SYN.
    Swallows,
    /// Takes the connection and says nothing.
    IsSilentInTls,
    /// Closes the connection in the handshake.
    ClosesInTls,
    /// Shows another identity than the one it should have.
    IsSomebodyElse,
    /// Answers CONNECT with a status.
    Answers(&'static str),
    /// Resets the stream with REFUSED_STREAM.
    RefusesStreams,
    /// Says GOAWAY with a last stream below ours.
    GoesAway,
    /// Resets the stream with CANCEL.
    Cancels,
}

/// A peer on port 15008 of an address, and how many connections it had.
pub(crate) struct Peer {
    seen: Arc<AtomicUsize>,
    _tasks: Tasks,
    _held: Vec<TcpStream>,
    _listener: Option<TcpListener>,
}

impl Peer {
    pub(crate) async fn play(network: &Network, at: IpAddr, identity: &SpiffeId, does: Does) -> Self {
        let (seen, tasks) = (Arc::new(AtomicUsize::new(0)), Tasks::new("peer"));
        let at = SocketAddr::new(at, HBONE);
        let mut peer = Self { seen: Arc::clone(&seen), _tasks: tasks, _held: Vec::new(), _listener: None };
        match does {
            Does::Refuses => {}
            Does::Swallows => {
                let socket = TcpSocket::new_v4().unwrap();
                socket.bind(at).unwrap();
                peer._listener = Some(socket.listen(0).unwrap());
                // The queue is full with these; what comes after them is dropped.
                loop {
                    let next = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(at)).await;
                    match next {
                        Ok(connected) => peer._held.push(connected.unwrap()),
                        Err(_) => break,
                    }
                }
            }
            _ => {
                let shown = if does == Does::IsSomebodyElse {
                    "spiffe://cluster.local/ns/sample/sa/somebody".parse().unwrap()
                } else {
                    identity.clone()
                };
                let certificate = network.certs.certificate(&shown).await.unwrap();
                let listener = TcpListener::bind(at).await.unwrap();
                let mine = Tasks::new("peer");
                peer._tasks.spawn("peer", async move {
                    loop {
                        let (tcp, _) = listener.accept().await.unwrap();
                        seen.fetch_add(1, Ordering::SeqCst);
                        let certificate = Arc::clone(&certificate);
                        mine.spawn("peer", async move { follow(tcp, &certificate, does).await });
                    }
                });
            }
        }
        peer
    }

    pub(crate) fn seen(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }
}

async fn follow(tcp: TcpStream, certificate: &Certificate, does: Does) {
    match does {
        Does::IsSilentInTls => return std::future::pending().await,
        Does::ClosesInTls => {
            tcp.readable().await.unwrap();
            return isthmus_sys::socket::reset_on_close(&tcp);
        }
        _ => {}
    }
    // A client that does not like the certificate goes away.
    let Ok(session) = TlsSession::accept(certificate.server_tls().config(), tcp, PATIENCE).await else {
        return;
    };
    let Ok(mut peer) = HbonePeer::server(session).await else { return };
    while let Ok(request) = peer.next(kind::HEADERS).await {
        let stream = request.stream;
        let done = match does {
            Does::Answers(status) => peer.headers(stream, &[(":status", status)], true).await,
            Does::RefusesStreams => peer.reset(stream, 7).await,
            Does::Cancels => peer.reset(stream, 8).await,
            Does::GoesAway => peer.goaway(0, 0).await,
            _ => Ok(()),
        };
        if done.is_err() {
            return;
        }
    }
}
