//! Small requests on many connections, by one thread: each connection has one request in flight.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use isthmus_benches::new_connections;
use isthmus_kit::lab::in_ns;
use isthmus_rt::task::Tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::meter::{Meter, Spent, WARM_UP, pause};
use crate::server::{ANSWER, PATIENCE, REQUEST};
use crate::syscalls::Syscalls;
use crate::worlds::World;

/// Connections that are being opened at the same time.
const OPENING: usize = 50;

/// What the thread of the clients and the one that measures share.
#[derive(Default)]
struct Progress {
    answered: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
}

/// Requests of `connections` that were answered in a span of time.
pub(crate) fn run(
    world: &World,
    connections: usize,
    time: Duration,
    syscalls: Option<&Syscalls>,
) -> Result<Spent> {
    let progress = Arc::new(Progress::default());
    let (ready, is_ready) = mpsc::channel();
    std::thread::scope(|scope| {
        let (shared, small) = (Arc::clone(&progress), world.small);
        let netns = Arc::clone(&world.lab.client.netns);
        let clients = move || {
            in_ns(&netns, || async {
                let open = open(small, connections).await?;
                let _ = ready.send(());
                work(open, &shared).await
            })
        };
        let clients = scope.spawn(clients);
        let measured =
            is_ready.recv_timeout(4 * PATIENCE).context("the connections do not open").and_then(|()| {
                pause(WARM_UP);
                let count = || progress.answered.load(Ordering::Relaxed);
                let meter = Meter::start(world, syscalls, count)?;
                pause(time);
                meter.stop(count())
            });
        progress.stop.store(true, Ordering::Relaxed);
        clients.join().map_err(|_| anyhow!("the clients panicked"))??;
        measured
    })
}

/// Opens connections, with one request on each.
pub(crate) async fn open(server: SocketAddr, number: usize) -> Result<Vec<TcpStream>> {
    let tasks = Tasks::new("opening");
    let (opened, mut all) = tokio::sync::mpsc::channel(OPENING);
    for part in 0..OPENING {
        let opened = opened.clone();
        tasks.spawn("opening", async move {
            for _ in (part..number).step_by(OPENING) {
                let result = open_one(server).await;
                let failed = result.is_err();
                if opened.send(result).await.is_err() || failed {
                    return;
                }
            }
        });
    }
    drop(opened);
    let mut streams = Vec::with_capacity(number);
    while let Some(stream) = all.recv().await {
        streams.push(stream.with_context(|| format!("connection {}", streams.len()))?);
    }
    ensure!(streams.len() == number, "{} of {number} connections", streams.len());
    Ok(streams)
}

async fn open_one(server: SocketAddr) -> Result<TcpStream> {
    let open = async {
        let mut stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        request(&mut stream).await?;
        Ok(stream)
    };
    timeout(PATIENCE, open).await.context("too slow")?
}

async fn request(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(&[7; REQUEST]).await?;
    stream.read_exact(&mut [0; ANSWER]).await?;
    Ok(())
}

/// Requests on all of them until the end.
async fn work(open: Vec<TcpStream>, progress: &Arc<Progress>) -> Result<()> {
    let tasks = Tasks::new("clients");
    for mut stream in open {
        let progress = Arc::clone(progress);
        tasks.spawn("client", async move {
            while !progress.stop.load(Ordering::Relaxed) {
                if request(&mut stream).await.is_err() {
                    progress.failed.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                progress.answered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    timeout(10 * PATIENCE, tasks.wait()).await.context("the clients do not end")?;
    let failed = progress.failed.load(Ordering::Relaxed);
    ensure!(failed == 0, "{failed} connections failed");
    Ok(())
}

/// New connections in a span of time.
pub(crate) fn new_connections(world: &World, time: Duration, syscalls: Option<&Syscalls>) -> Result<Spent> {
    /// Certificates are fetched and tunnels opened by the first ones.
    const FIRST: u32 = 300;
    const BATCH: u32 = 400;
    let run = |number| new_connections::run(&world.lab.client, world.bytes, number);
    run(FIRST)?;
    let meter = Meter::start(world, syscalls, || 0)?;
    let (end, mut count) = (Instant::now() + time, 0);
    while Instant::now() < end {
        run(BATCH)?;
        count += u64::from(BATCH);
    }
    meter.stop(count)
}
