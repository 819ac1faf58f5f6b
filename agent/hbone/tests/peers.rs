//! What a server grants one peer: how long its tunnels may be idle, streams that it resets, and the slots of streams.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::time::Duration;

use isthmus_hbone::server::{self, Request};
use isthmus_hbone::{PeerBudgets, Settings, TunnelError};
use isthmus_kit::hbone::{HbonePeer, kind};
use isthmus_rt::drain;
use isthmus_rt::task::Tasks;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

struct Served {
    peer: HbonePeer<DuplexStream>,
    requests: mpsc::UnboundedReceiver<Request>,
    ended: oneshot::Receiver<Result<(), TunnelError>>,
    _kept: (drain::Drain, Tasks),
}

async fn serve(settings: Settings) -> Served {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let (drain, watch) = drain::channel();
    let (hand_out, requests) = mpsc::unbounded_channel();
    let (done, ended) = oneshot::channel();
    let tasks = Tasks::new("test");
    tasks.spawn("server", async move {
        let served = server::serve(ours, &settings, watch, |request| {
            let _ = hand_out.send(request);
        });
        let _ = done.send(served.await);
    });
    let mut peer = HbonePeer::client(theirs).await.unwrap();
    peer.ack_settings().await.unwrap();
    Served { peer, requests, ended, _kept: (drain, tasks) }
}

impl Served {
    async fn connect(&mut self, stream: u32) {
        let head = [(":method", "CONNECT"), (":authority", "10.0.0.1:80")];
        self.peer.headers(stream, &head, false).await.unwrap();
    }

    /// Answers PINGs until the GOAWAY; returns its last stream and code, and whether the PING behind it is to be answered.
    async fn until_goaway(&mut self) -> (u32, u32) {
        loop {
            let frame = self.peer.recv().await.unwrap().unwrap();
            if frame.kind == kind::PING && frame.flags & 1 == 0 {
                self.peer.send(kind::PING, 1, 0, &frame.payload).await.unwrap();
            }
            if frame.kind == kind::GOAWAY {
                let number = |at: usize| u32::from_be_bytes(frame.payload[at..at + 4].try_into().unwrap());
                return (number(0), number(4));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_without_streams_ends_although_the_client_answers_pings() {
    let (mut served, start) = (serve(Settings::default()).await, Instant::now());
    assert_eq!(served.until_goaway().await.1, 0);
    let minutes = start.elapsed().as_secs() / 60;
    assert!((10..11).contains(&minutes), "after {minutes} minutes");
    // It does not answer the PING behind the GOAWAY.
    served.ended.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn idle_tunnels_of_a_peer_with_many_end_early() {
    let peers = PeerBudgets::default();
    let others: Vec<_> = (0..100).map(|_| peers.admit("peer").unwrap()).collect();
    let settings = Settings { peer: Some(peers.admit("peer").unwrap()), ..Settings::default() };
    let (mut served, start) = (serve(settings).await, Instant::now());
    served.until_goaway().await;
    assert!(start.elapsed() < Duration::from_secs(31), "{:?}", start.elapsed());
    drop(others);
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_with_a_stream_does_not_end() {
    let mut served = serve(Settings::default()).await;
    served.connect(1).await;
    let stream = served.requests.recv().await.unwrap().accept(None).unwrap();
    let goaway = tokio::time::timeout(Duration::from_secs(3600), served.until_goaway());
    assert!(goaway.await.is_err());
    drop(stream);
}

#[tokio::test(start_paused = true)]
async fn resets_of_several_tunnels_of_a_peer_are_one_budget() {
    let peers = PeerBudgets::default();
    let other = peers.admit("peer").unwrap();
    let settings = Settings { peer: Some(other.clone()), ..Settings::default() };
    let mut served = serve(settings).await;
    // Nine tenths were spent elsewhere.
    assert!(peers.admit("peer").unwrap().try_spend_resets(18_000));
    let mut open = Vec::new();
    let attack = async {
        for count in 0.. {
            let stream = 2 * count + 1;
            let head = [(":method", "CONNECT"), (":authority", "10.0.0.1:80")];
            if served.peer.headers(stream, &head, false).await.is_err() {
                return count;
            }
            let Some(request) = served.requests.recv().await else { return count };
            let Ok(ours) = request.accept(None) else { return count };
            if served.peer.reset(stream, 8).await.is_err() {
                return count;
            }
            open.push(ours);
            if count % 8 == 0 {
                // Timers have no finer resolution.
                tokio::time::sleep(Duration::from_millis(1)).await;
                open.clear();
            }
        }
        0
    };
    let count = tokio::time::timeout(Duration::from_secs(10), attack).await.unwrap();
    assert!((2_000..9_000).contains(&count), "{count} streams");
    assert!(served.ended.await.unwrap().is_err());
    drop(other);
}
