//! A tunnel under load is moved between two processes, back and forth, in both roles; its peer and its applications notice
//! nothing. The test's program runs itself as the other process.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod accounts;
mod far;
mod hold;
mod load;
mod pass;
mod random;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use isthmus_hbone::handover::{decode, encode};
use isthmus_hbone::session::TlsSession;
use isthmus_hbone::{Head, Settings};
use isthmus_kit::pki::{Ca, Leaf};
use isthmus_rt::task::Tasks;
use tokio::net::{TcpListener, TcpStream};
use tokio_seqpacket::UnixSeqpacketListener;

use far::Stack;
use hold::{End, Handle, Held, through_bytes};
use load::{Flow, SHAPES};
use pass::{Channel, kind};

pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
/// How long a tunnel stays in one process.
const STAY: Duration = Duration::from_millis(120);
const SOCKET: &str = "ISTHMUS_TEST_HANDOVER";

/// Windows that the unread megabyte and a half does not fit into.
fn settings() -> Settings {
    Settings { max_stream_window: 1 << 20, ..Settings::default() }
}

/// The other process. Without its socket there is nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_process() {
    let Some(path) = std::env::var_os(SOCKET) else { return };
    let channel = Channel::connect(Path::new(&path)).await;
    while let Some((items, _)) = channel.recv_items().await {
        let mut held = Held::resume(decode(items).unwrap(), &settings());
        channel.send(kind::RUNNING, &[], None).await;
        let Some(asked) = channel.recv().await else { return };
        assert_eq!(asked.kind, kind::RETURN);
        let parts = held.take_apart().await;
        for (id, (sent, received, error)) in &held.ended {
            channel.send(kind::OUTCOME, format!("{id} {sent} {received} {error}").as_bytes(), None).await;
        }
        channel.send_items(&encode(parts).unwrap()).await;
    }
}

/// The other process, as the test sees it.
struct Other {
    channel: Channel,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Other {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover");
        let mut listener = UnixSeqpacketListener::bind(&path).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "other_process"])
            .env(SOCKET, &path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let channel = Channel(tokio::time::timeout(DEADLINE, listener.accept()).await.unwrap().unwrap());
        Self { channel, child, _folder: folder }
    }

    /// Moves a tunnel there, leaves it there for a while, and takes it back. Returns the pause of the way there.
    async fn visit(&self, held: &mut Held) -> Duration {
        let start = Instant::now();
        let parts = held.take_apart().await;
        self.channel.send_items(&encode(parts).unwrap()).await;
        let running = self.channel.recv().await.unwrap();
        assert_eq!(running.kind, kind::RUNNING);
        let pause = start.elapsed();
        tokio::time::sleep(STAY).await;
        self.channel.send(kind::RETURN, &[], None).await;
        let (items, outcomes) = self.channel.recv_items().await.unwrap();
        let mut ended = std::mem::take(&mut held.ended);
        *held = Held::resume(decode(items).unwrap(), &settings());
        ended.extend(outcomes.iter().map(|outcome| parse(&String::from_utf8_lossy(&outcome.bytes))));
        held.ended = ended;
        tokio::time::sleep(STAY).await;
        pause
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse(text: &str) -> (u32, End) {
    let parts: Vec<&str> = text.splitn(4, ' ').collect();
    let [id, sent, received, error] = parts[..] else { panic!("{text}") };
    (id.parse().unwrap(), (sent.parse().unwrap(), received.parse().unwrap(), error.to_owned()))
}

fn leaf() -> Leaf {
    Ca::new("root").unwrap().server(&["0.0.0.0"]).unwrap()
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connect = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(connect, listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap().0);
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

/// All traffic over one tunnel.
struct Traffic {
    stop: Arc<AtomicBool>,
    /// By stream.
    flows: BTreeMap<u32, (Flow, Tasks)>,
}

impl Traffic {
    /// Ends all flows and compares what they have carried with what the copies say.
    async fn finish(self, held: &mut Held) {
        self.stop.store(true, Ordering::Relaxed);
        let count = self.flows.len();
        let mut totals = BTreeMap::new();
        for (id, (flow, _tasks)) in self.flows {
            let total = tokio::time::timeout(3 * DEADLINE, flow.totals()).await;
            totals.insert(id, total.unwrap_or_else(|_| panic!("stream {id} hangs")));
        }
        tokio::time::timeout(DEADLINE, held.wait(count)).await.unwrap();
        for (id, (sent, received, error)) in &held.ended {
            assert_eq!((totals[id], error.as_str()), ((*sent, *received), ""), "stream {id}");
        }
        assert_eq!(held.ended.len(), count);
        let bytes: u64 = totals.values().map(|(up, down)| up + down).sum();
        println!("{count} streams carried {} MB", bytes / 1_000_000);
    }
}

/// A client's tunnel with streams to a server, each under its own load.
async fn client_tunnel(stack: Stack, streams: usize, peer: &Tasks) -> (Held, Traffic) {
    let leaf = leaf();
    let (near, far) = tcp_pair().await;
    let (client, server) =
        (leaf.client_config(&["h2"]).unwrap(), leaf.server_config(false, &["h2"]).unwrap());
    let (session, mut found) = tokio::join!(
        async { TlsSession::connect(client, near, DEADLINE).await.unwrap() },
        far::server(stack, far, server, peer)
    );
    let held = Held::client(session, &settings());
    let stop = Arc::new(AtomicBool::new(false));
    let mut flows = BTreeMap::new();
    for at in 0..streams {
        let Handle::Client(tunnel) = &held.handle else { unreachable!() };
        let (stream, _) = tunnel.open(&Head::new("10.0.0.1:80".parse().unwrap())).await.unwrap();
        let peer = found.recv().await.unwrap();
        let (app, ours) = tcp_pair().await;
        let id = stream.id();
        held.copy(ours, stream);
        flows.insert(id, Flow::start(app, peer, u64::from(id), SHAPES[at % SHAPES.len()], &stop));
    }
    (held, Traffic { stop, flows })
}

/// A server's tunnel with a client that opens streams to the applications behind it.
struct ServerSide {
    held: Held,
    traffic: Traffic,
    client: far::Client,
    apps: TcpListener,
    next: u32,
}

impl ServerSide {
    async fn new(stack: Stack, streams: usize, peer: &Tasks) -> Self {
        let leaf = leaf();
        let (far, near) = tcp_pair().await;
        let (client, server) =
            (leaf.client_config(&["h2"]).unwrap(), leaf.server_config(false, &["h2"]).unwrap());
        let (held, client) = tokio::join!(
            async { Held::server(TlsSession::accept(server, near, DEADLINE).await.unwrap(), &settings()) },
            far::Client::connect(stack, far, client, peer)
        );
        let apps = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let traffic = Traffic { stop: Arc::new(AtomicBool::new(false)), flows: BTreeMap::new() };
        let mut side = Self { held, traffic, client, apps, next: 1 };
        for _ in 0..streams {
            side.open().await;
        }
        side
    }

    /// Opens a stream, wherever the tunnel is.
    async fn open(&mut self) {
        let authority = self.apps.local_addr().unwrap().to_string();
        let (peer, app) = tokio::join!(self.client.open(&authority), self.apps.accept());
        let (id, shape) = (self.next, SHAPES[self.traffic.flows.len() % SHAPES.len()]);
        let flow = Flow::start(app.unwrap().0, peer, u64::from(id), shape, &self.traffic.stop);
        self.traffic.flows.insert(id, flow);
        self.next += 2;
    }
}

async fn client_moves(stack: Stack, streams: usize, moves: usize) {
    let (other, peer) = (Other::start().await, Tasks::new("peer"));
    let (mut held, traffic) = client_tunnel(stack, streams, &peer).await;
    let mut pauses = Vec::new();
    for _ in 0..moves {
        pauses.push(tokio::time::timeout(2 * DEADLINE, other.visit(&mut held)).await.unwrap());
    }
    println!("{stack:?}: pauses {pauses:.1?}");
    traffic.finish(&mut held).await;
    held.keep();
}

async fn server_moves(stack: Stack, streams: usize, moves: usize) {
    let (other, peer) = (Other::start().await, Tasks::new("peer"));
    let mut side = ServerSide::new(stack, streams, &peer).await;
    let mut pauses = Vec::new();
    for _ in 0..moves {
        pauses.push(tokio::time::timeout(2 * DEADLINE, other.visit(&mut side.held)).await.unwrap());
        side.open().await;
    }
    println!("{stack:?}: pauses {pauses:.1?}");
    let ServerSide { mut held, traffic, client: _client, .. } = side;
    traffic.finish(&mut held).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_tunnel_to_our_server_moves() {
    client_moves(Stack::Ours, 18, 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_servers_tunnel_from_our_client_moves() {
    server_moves(Stack::Ours, 18, 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_tunnel_to_rustls_and_h2_moves() {
    client_moves(Stack::Oracle, 18, 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_servers_tunnel_from_rustls_and_h2_moves() {
    server_moves(Stack::Oracle, 18, 5).await;
}

/// Prints the pause of each move: from the last byte here to the first there, with everything in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_with_a_hundred_streams_moves() {
    client_moves(Stack::Ours, 100, 4).await;
}

/// The same within one process, many times in a row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_goes_on_where_it_was() {
    let peer = Tasks::new("peer");
    let (mut held, traffic) = client_tunnel(Stack::Oracle, 9, &peer).await;
    for _ in 0..30 {
        let parts = through_bytes(held.take_apart().await);
        let ended = std::mem::take(&mut held.ended);
        held = Held::resume(parts, &settings());
        held.ended = ended;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    traffic.finish(&mut held).await;
}
