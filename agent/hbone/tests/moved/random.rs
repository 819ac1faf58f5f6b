//! Random schedules: bytes, half-closes and resets in both directions of a few streams, and both ends of the tunnel taken
//! apart and put together in between. Every end sees every byte, and its end as it was.

use std::io::ErrorKind;
use std::time::Duration;

use isthmus_hbone::handover::{Control, ResumedCopy, TunnelParts, resume_client_over, resume_server_over};
use isthmus_hbone::server::Server;
use isthmus_hbone::{Head, MemoryBudget, Settings, client};
use isthmus_rt::drain;
use isthmus_rt::task::Tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::hold::{answer, copied, resumed};
use crate::{DEADLINE, settings, tcp_pair};

/// The client's end, then the server's.
const ENDS: usize = 2;
const STREAMS: usize = 6;

/// An application's connection and what it has sent and received.
struct App {
    tcp: Option<TcpStream>,
    seed: u64,
    sent: u64,
    received: u64,
    /// It has sent its FIN.
    closed: bool,
    /// It has received one.
    ended: bool,
    /// It was told of a reset, once.
    failed: bool,
}

/// Both ends of a connection.
struct Connection {
    apps: [App; ENDS],
    reset: bool,
}

struct Schedule {
    rng: fastrand::Rng,
    tunnel: client::Tunnel,
    control: Control,
    /// Of each end, as long as it is there.
    tasks: [Tasks; ENDS],
    drain: drain::Drain,
    apps: TcpListener,
    connections: Vec<Connection>,
    moves: usize,
    /// Of each process.
    memory: usize,
}

/// Of a process that has as much memory for tunnels.
fn within(memory: usize) -> Settings {
    Settings { memory: MemoryBudget::new(memory), ..settings() }
}

fn byte(seed: u64, at: u64) -> u8 {
    (seed.wrapping_mul(31) ^ at.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_be_bytes()[0]
}

// === impl App ===

impl App {
    fn new(tcp: TcpStream, seed: u64) -> Self {
        Self { tcp: Some(tcp), seed, sent: 0, received: 0, closed: false, ended: false, failed: false }
    }

    fn send(&mut self, count: usize) {
        let Some(tcp) = self.tcp.as_ref().filter(|_| !self.closed) else { return };
        let bytes: Vec<u8> = (self.sent..).take(count).map(|at| byte(self.seed, at)).collect();
        match tcp.try_write(&bytes) {
            Ok(count) => self.sent += count as u64,
            Err(error) => self.failed |= error.kind() != ErrorKind::WouldBlock,
        }
    }

    /// Counts and compares what has arrived, sent by `seed`. An error is a reset's.
    fn check(&mut self, bytes: &[u8], seed: u64) {
        for got in bytes {
            assert_eq!(*got, byte(seed, self.received), "byte {} of {seed}", self.received);
            self.received += 1;
        }
    }

    fn receive(&mut self, count: usize, seed: u64) {
        let Some(tcp) = self.tcp.as_ref().filter(|_| !self.ended && !self.failed) else { return };
        let mut buffer = vec![0; count];
        match tcp.try_read(&mut buffer) {
            Ok(0) => self.ended = true,
            Ok(count) => self.check(&buffer[..count], seed),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.failed = true,
        }
    }

    async fn half_close(&mut self) {
        if let Some(tcp) = &mut self.tcp {
            self.closed |= tcp.shutdown().await.is_ok();
        }
    }
}

// === impl Schedule ===

impl Schedule {
    async fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let tasks = [Tasks::new("client"), Tasks::new("server")];
        // Small enough that records are cut anywhere.
        let (near, far) = duplex(rng.usize(100..100_000));
        let memory = rng.usize(4..64) << 20;
        let tunnel = client::start(near, &within(memory), &tasks[0]).unwrap();
        let (drain, _) = drain::channel();
        let apps = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut schedule = Self {
            control: run(Server::new(far, &within(memory)).unwrap(), &tasks[1]),
            rng,
            tunnel,
            tasks,
            drain,
            apps,
            connections: Vec::new(),
            moves: 0,
            memory,
        };
        schedule.open().await;
        schedule
    }

    async fn open(&mut self) {
        let head = Head::new(self.apps.local_addr().unwrap().to_string().parse().unwrap());
        let (near, far) = tokio::join!(self.tunnel.open(&head), self.apps.accept());
        let (app, ours) = tcp_pair().await;
        let seed = 2 * self.connections.len() as u64;
        let apps = [App::new(app, seed), App::new(far.unwrap().0, seed + 1)];
        self.connections.push(Connection { apps, reset: false });
        let (done, _) = mpsc::unbounded_channel();
        self.tasks[0].spawn("copy", copied(ours, near.unwrap().0, done));
    }

    /// Takes one end apart and puts it together.
    async fn move_end(&mut self, end: usize) {
        self.moves += 1;
        let parts = match end {
            0 => self.tunnel.take_apart(DEADLINE).await,
            _ => self.control.take_apart(DEADLINE).await,
        };
        let (io, parts): (DuplexStream, TunnelParts) = parts.unwrap().take_transport().unwrap();
        let tasks = Tasks::new("resumed");
        let copies: Vec<ResumedCopy> = if end == 0 {
            let (tunnel, copies) = resume_client_over(io, parts, &within(self.memory), &tasks).unwrap();
            self.tunnel = tunnel;
            copies
        } else {
            let (server, copies) = resume_server_over(io, parts, &within(self.memory)).unwrap();
            self.control = run(server, &tasks);
            copies
        };
        for copy in copies {
            let (done, _) = mpsc::unbounded_channel();
            tasks.spawn("copy", resumed(copy, done));
        }
        let before = std::mem::replace(&mut self.tasks[end], tasks);
        // Connections that had ended already may still be closing.
        self.tasks[end].spawn("before", async move { before.wait().await });
    }

    async fn step(&mut self) {
        let (at, end) = (self.rng.usize(..self.connections.len()), self.rng.usize(..ENDS));
        let most = if self.rng.bool() { 40_000 } else { 300 };
        let count = 1 + self.rng.usize(..most);
        let choice = self.rng.u8(..100);
        let connection = &mut self.connections[at];
        let seed = connection.apps[1 - end].seed;
        match choice {
            0..40 => connection.apps[end].send(count),
            40..75 => connection.apps[end].receive(count, seed),
            75..79 => connection.apps[end].half_close().await,
            79..81 if !connection.apps[end].closed => {
                connection.reset = true;
                if let Some(tcp) = connection.apps[end].tcp.take() {
                    tcp.set_zero_linger().unwrap();
                }
            }
            81..85 if self.connections.len() < STREAMS => self.open().await,
            85..92 => self.move_end(end).await,
            92.. => tokio::time::sleep(Duration::from_micros(count as u64 / 40)).await,
            _ => tokio::task::yield_now().await,
        }
    }

    /// Everything that was sent arrives; what was reset does not look complete.
    async fn finish(mut self) {
        for connection in &mut self.connections {
            let [a, b] = &mut connection.apps;
            a.half_close().await;
            b.half_close().await;
            let (sent, was_reset) = ([b.sent, a.sent], connection.reset);
            let seeds = (a.seed, b.seed);
            let (first, second) = tokio::join!(drain_app(a, seeds.1), drain_app(b, seeds.0));
            for ((app, complete), sent) in [(a, first), (b, second)].into_iter().zip(sent) {
                let Some(complete) = complete else { continue };
                assert!(app.received <= sent);
                assert!(!complete || app.received == sent, "{} of {sent}: looks complete", app.received);
                assert!(complete || was_reset, "a connection was reset");
            }
        }
        drop(self.drain);
    }
}

/// Reads to the end. `None` when the application is gone, else whether the end was a proper one.
async fn drain_app(app: &mut App, seed: u64) -> Option<bool> {
    if app.ended || app.failed {
        return Some(app.ended);
    }
    let mut tcp = app.tcp.take()?;
    let mut buffer = vec![0; 50_000];
    loop {
        match timeout(DEADLINE, tcp.read(&mut buffer)).await.expect("a connection hangs") {
            Ok(0) => return Some(true),
            Ok(count) => app.check(&buffer[..count], seed),
            Err(_) => return Some(false),
        }
    }
}

/// Serves a tunnel whose requests lead to the application at their authority.
fn run(server: Server<DuplexStream>, tasks: &Tasks) -> Control {
    let (control, spawner) = (server.control(), tasks.clone());
    let (drain, watch) = drain::channel();
    tasks.spawn("server", async move {
        let _drain = drain;
        let (done, _) = mpsc::unbounded_channel();
        let _ = server
            .serve(watch, |request| {
                spawner.spawn("request", answer(request, done.clone()));
            })
            .await;
    });
    control
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_schedules_lose_nothing() {
    let mut moves = 0;
    for seed in 0..40 {
        println!("seed {seed}");
        let mut schedule = Schedule::new(seed).await;
        for _ in 0..150 {
            timeout(2 * DEADLINE, schedule.step()).await.expect("a step hangs");
        }
        moves += schedule.moves;
        schedule.finish().await;
    }
    assert!(moves > 200, "{moves} moves");
}
