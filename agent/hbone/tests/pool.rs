//! The pool against real tunnels and against peers that are dead, dying or full.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

#[path = "support/pair.rs"]
mod pair;

use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use isthmus_hbone::client::{self, Tunnel};
use isthmus_hbone::pool::{Config, Connect, ConnectFailure, Opened, Pool, PoolError, Stage};
use isthmus_hbone::server;
use isthmus_hbone::{ConnectStatus, OpenError, Settings, Stream};
use isthmus_kit::hbone::{HbonePeer, kind};
use isthmus_rt::BoxFuture;
use isthmus_rt::drain::{self, Drain};
use isthmus_rt::task::Tasks;
use tokio::io::DuplexStream;
use tokio::time::Instant;

use pair::{head, soon};

/// Dials servers in memory that accept everything; a key says how its peer behaves.
#[derive(Clone)]
struct TestPeers(Arc<PeersState>);

struct PeersState {
    tasks: Tasks,
    settings: Settings,
    dials: AtomicUsize,
    /// Streams the servers accepted, kept open.
    accepted: Arc<Mutex<Vec<Stream>>>,
    drains: Mutex<Vec<Drain>>,
    scripted: Mutex<Vec<HbonePeer<DuplexStream>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Good,
    /// Good, and another peer.
    Numbered(u8),
    /// The dial is never answered.
    BlackHole,
    /// The dial fails after a second.
    Refusing,
    /// Scripted by the test.
    Scripted,
}

impl Deref for TestPeers {
    type Target = PeersState;
    fn deref(&self) -> &PeersState {
        &self.0
    }
}

impl TestPeers {
    fn new() -> Self {
        Self(Arc::new(PeersState {
            tasks: Tasks::new("test"),
            settings: Settings { client_max_streams: 4, ..Settings::default() },
            dials: AtomicUsize::new(0),
            accepted: Arc::default(),
            drains: Mutex::default(),
            scripted: Mutex::default(),
        }))
    }

    fn pool(&self) -> Pool<Key> {
        Pool::new(Config { streams: 4, ..Config::default() }, &self.tasks)
    }

    fn dials(&self) -> usize {
        self.dials.load(Ordering::Relaxed)
    }

    async fn dial(&self) -> Tunnel {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (drain, watch) = drain::channel();
        let (settings, accepted) = (self.settings.clone(), Arc::clone(&self.accepted));
        self.tasks.spawn("server", async move {
            let _ = server::serve(far, &settings, watch, |request| {
                accepted.lock().unwrap().push(request.accept(None).unwrap());
            })
            .await;
        });
        self.drains.lock().unwrap().push(drain);
        client::start(near, &self.settings, &self.tasks).unwrap()
    }

    async fn dial_scripted(&self) -> Tunnel {
        let (near, far) = tokio::io::duplex(1 << 20);
        let dialled = client::start(near, &self.settings, &self.tasks);
        let (tunnel, peer) = tokio::join!(std::future::ready(dialled), HbonePeer::server(far));
        self.scripted.lock().unwrap().push(peer.unwrap());
        tunnel.unwrap()
    }

    fn take_scripted(&self) -> HbonePeer<DuplexStream> {
        self.scripted.lock().unwrap().pop().expect("no dial so far")
    }
}

impl Connect<Key> for TestPeers {
    fn connect(&self, key: &Key) -> BoxFuture<'static, Result<Tunnel, ConnectFailure>> {
        self.dials.fetch_add(1, Ordering::Relaxed);
        let (peers, key) = (self.clone(), key.clone());
        Box::pin(async move {
            match key {
                Key::Good | Key::Numbered(_) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    Ok(peers.dial().await)
                }
                Key::BlackHole => std::future::pending().await,
                Key::Refusing => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
                    Err(ConnectFailure::new(Stage::Connect, refused))
                }
                Key::Scripted => Ok(peers.dial_scripted().await),
            }
        })
    }
}

async fn open(pool: &Pool<Key>, peers: &TestPeers) -> Opened {
    soon(pool.open(&Key::Good, &head(), peers)).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn one_dial_serves_as_many_callers_as_a_tunnel_has_streams() {
    let peers = TestPeers::new();
    let pool = peers.pool();
    let opened = join_all((0..10).map(|_| open(&pool, &peers))).await;
    assert_eq!((peers.dials(), pool.len()), (3, 3));
    assert_eq!(opened.iter().filter(|opened| !opened.reused).count(), 3);
    // The third tunnel has room for two more.
    let more = join_all((0..2).map(|_| open(&pool, &peers))).await;
    assert!(more.iter().all(|opened| opened.reused));
    assert_eq!(peers.dials(), 3);
}

#[tokio::test(start_paused = true)]
async fn full_tunnel_is_used_again_when_a_stream_ends() {
    let peers = TestPeers::new();
    let pool = peers.pool();
    let mut opened = join_all((0..4).map(|_| open(&pool, &peers))).await;
    assert!(!opened[0].tunnel.is_usable());
    opened.pop();
    assert!(open(&pool, &peers).await.reused);
    assert_eq!(peers.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn callers_of_an_unreachable_peer_fail_at_their_own_deadline() {
    let peers = TestPeers::new();
    let pool = peers.pool();
    let call = async |after: u64| {
        tokio::time::sleep(Duration::from_secs(after)).await;
        let start = Instant::now();
        let error = pool.open(&Key::BlackHole, &head(), &peers).await.unwrap_err();
        assert!(matches!(error, PoolError::Deadline(_)), "{error}");
        start.elapsed().as_secs()
    };
    let waited = join_all([0, 0, 0, 3, 5, 9].map(call)).await;
    assert_eq!(waited, [10; 6]);
    // A later caller is not delayed by earlier ones; nor are callers of other peers meanwhile.
    let (late, good) = tokio::join!(call(0), open(&pool, &peers));
    assert_eq!(late, 10);
    drop(good);
}

#[tokio::test(start_paused = true)]
async fn failed_dial_fails_all_its_callers_at_once_and_is_not_cached() {
    let peers = TestPeers::new();
    let pool = peers.pool();
    let start = Instant::now();
    let head = head();
    let errors = join_all((0..4).map(|_| pool.open(&Key::Refusing, &head, &peers))).await;
    assert_eq!((start.elapsed().as_secs(), peers.dials()), (1, 1));
    for error in errors {
        let PoolError::Connect(failure) = error.unwrap_err() else { panic!("not a failed dial") };
        assert_eq!(failure.stage, Stage::Connect);
        assert_eq!(failure.to_string(), "connection refused");
    }
    pool.open(&Key::Refusing, &head, &peers).await.unwrap_err();
    assert_eq!(peers.dials(), 2);
}

#[tokio::test(start_paused = true)]
async fn caller_that_gives_up_while_dialling_strands_no_waiter() {
    let peers = TestPeers::new();
    let pool = peers.pool();
    let head = head();
    let quitter = tokio::time::timeout(Duration::from_millis(1), pool.open(&Key::Good, &head, &peers));
    let gone = tokio::time::timeout(Duration::from_millis(1), pool.open(&Key::Good, &head, &peers));
    let (quit, left, stayed) = tokio::join!(quitter, gone, open(&pool, &peers));
    assert!(quit.is_err() && left.is_err());
    assert!(!stayed.reused);
    assert_eq!(peers.dials(), 2);
}

#[tokio::test(start_paused = true)]
async fn tunnel_that_is_going_away_is_not_used() {
    let peers = TestPeers::new();
    let pool = peers.pool();
    let old = open(&pool, &peers).await;
    let drain = peers.drains.lock().unwrap().pop().unwrap();
    let new = async {
        // The server's GOAWAY must have been read: only then can it be known.
        while old.tunnel.is_usable() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        open(&pool, &peers).await
    };
    let finish = async {
        let new = soon(new).await;
        peers.accepted.lock().unwrap().clear();
        new
    };
    let (_, new) = tokio::join!(drain.shutdown(Duration::from_secs(60)), finish);
    assert!(!new.reused);
    assert_eq!((peers.dials(), pool.len()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn connect_that_raced_with_a_goaway_or_was_refused_is_retried_on_another_tunnel() {
    let peers = TestPeers::new();
    let pool = peers.pool();
    let head = head();
    let script = async {
        let next = async || {
            loop {
                if let Some(peer) = peers.scripted.lock().unwrap().pop() {
                    return peer;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let mut first = soon(next()).await;
        first.next(kind::HEADERS).await.unwrap();
        first.goaway(0, 0).await.unwrap();
        let mut second = soon(next()).await;
        let refused = second.next(kind::HEADERS).await.unwrap().stream;
        second.reset(refused, 7).await.unwrap();
        let mut third = soon(next()).await;
        let good = third.next(kind::HEADERS).await.unwrap().stream;
        third.headers(good, &[(":status", "200")], false).await.unwrap();
        (first, second, third)
    };
    let (opened, _peers) = tokio::join!(pool.open(&Key::Scripted, &head, &peers), script);
    opened.unwrap();
    assert_eq!(peers.dials(), 3);
}

#[tokio::test(start_paused = true)]
async fn status_is_returned_to_the_caller_and_the_tunnel_stays() {
    let peers = TestPeers::new();
    let pool = peers.pool();
    let head = head();
    let call = pool.open(&Key::Scripted, &head, &peers);
    let script = async {
        while peers.scripted.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut peer = peers.take_scripted();
        let stream = peer.next(kind::HEADERS).await.unwrap().stream;
        peer.headers(stream, &[(":status", "401")], true).await.unwrap();
        peer
    };
    let (error, _peer) = tokio::join!(call, script);
    assert!(matches!(error.unwrap_err(), PoolError::Open(OpenError::Status(ConnectStatus::UNAUTHORIZED))));
    assert_eq!((peers.dials(), pool.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn idle_tunnel_is_closed_after_five_minutes() {
    let peers = TestPeers::new();
    let pool = peers.pool();
    let opened = open(&pool, &peers).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(pool.len(), 1, "it is in use");
    let Opened { stream, tunnel, .. } = opened;
    drop(stream);
    tokio::time::sleep(Duration::from_secs(299)).await;
    assert_eq!(pool.len(), 1);
    tokio::time::sleep(Duration::from_secs(32)).await;
    assert!(pool.is_empty());
    assert!(tunnel.is_usable(), "this handle still holds it");
    drop(tunnel);
    peers.drains.lock().unwrap().clear();
}

#[tokio::test(start_paused = true)]
async fn idle_tunnels_are_limited_and_the_longest_idle_close_first() {
    let peers = TestPeers::new();
    let pool = Pool::new(Config { streams: 4, max_idle: 2, ..Config::default() }, &peers.tasks);
    let head = head();
    for peer in 0..4 {
        drop(soon(pool.open(&Key::Numbered(peer), &head, &peers)).await.unwrap());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // The next dial looks them over; its own tunnel is in use.
    let used = soon(pool.open(&Key::Numbered(4), &head, &peers)).await.unwrap();
    assert_eq!(pool.len(), 3);
    for (peer, kept) in [(3, true), (2, true), (4, true), (0, false), (1, false)] {
        let opened = soon(pool.open(&Key::Numbered(peer), &head, &peers)).await.unwrap();
        assert_eq!(opened.reused, kept, "{peer}");
    }
    drop(used);
}

#[tokio::test(start_paused = true)]
async fn graceful_close_of_the_pool_lets_streams_finish() {
    let peers = TestPeers::new();
    let pool = peers.pool();
    let mut opened = open(&pool, &peers).await;
    pool.close_gracefully();
    assert!(pool.is_empty());
    assert!(!opened.tunnel.is_usable());
    let far = peers.accepted.lock().unwrap().pop();
    let mut far = far.unwrap();
    opened.stream.send(b"late").await.unwrap();
    assert_eq!(soon(far.recv()).await.unwrap().unwrap(), "late");
}
