//! The cost of a tunnel to a connection over loopback: the throughput of one stream and the time of one small exchange,
//! beside the same two applications connected directly.
//!
//! `plain` is the copy between two sockets that captured traffic outside the mesh gets; `cleartext` is HTTP/2 without
//! TLS; `tls` is the path in a mesh: application, copy, TLS tunnel, copy, application.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use isthmus_hbone::session::TlsSession;
use isthmus_hbone::{Head, Settings, Stream, Transport, client, copy, server};
use isthmus_kit::pki::Ca;
use isthmus_rt::drain;
use isthmus_rt::task::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// Bytes of one measured transfer.
const TRANSFER: usize = 64 << 20;
/// Bytes of one write of the sending application.
const WRITE: usize = 128 << 10;
/// Bytes of one small exchange, each way.
const MESSAGE: usize = 128;

/// How the two applications are joined.
#[derive(Clone, Copy)]
enum Path {
    Direct,
    Plain,
    Cleartext,
    Tls,
}

const PATHS: [(&str, Path); 4] =
    [("direct", Path::Direct), ("plain", Path::Plain), ("cleartext", Path::Cleartext), ("tls", Path::Tls)];

async fn tcp_pair() -> anyhow::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let connect = TcpStream::connect(listener.local_addr()?);
    let (near, far) = tokio::join!(connect, listener.accept());
    let (near, far) = (near?, far?.0);
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    Ok((near, far))
}

/// The sockets of two applications that are joined by `path`.
async fn joined(path: Path, tasks: &Tasks) -> anyhow::Result<(TcpStream, TcpStream)> {
    let (client, ours) = tcp_pair().await?;
    if matches!(path, Path::Direct) {
        return Ok((client, ours));
    }
    let (theirs, server) = tcp_pair().await?;
    if matches!(path, Path::Plain) {
        tasks.spawn("plain copy", async move {
            copy::plain(ours, theirs, &(), &copy::PlainControl::default()).await
        });
        return Ok((client, server));
    }
    let (near, far) = tcp_pair().await?;
    let (near, far) = match path {
        Path::Tls => {
            let leaf = Ca::new("bench")?.server(&["0.0.0.0"])?;
            let (client_config, server_config) =
                (leaf.client_config(&["h2"])?, leaf.server_config(false, &["h2"])?);
            let deadline = Duration::from_secs(10);
            let connect = TlsSession::connect(client_config, near, deadline);
            let (near, far) = tokio::join!(connect, TlsSession::accept(server_config, far, deadline));
            streams(near?, far?, tasks).await?
        }
        _ => streams(near, far, tasks).await?,
    };
    tasks.spawn("client's copy", async move { copy::tunnel(ours, near, Arc::new(())).await });
    tasks.spawn("server's copy", async move { copy::tunnel(theirs, far, Arc::new(())).await });
    Ok((client, server))
}

/// Both ends of one stream of a new tunnel.
async fn streams<S: Transport>(near: S, far: S, tasks: &Tasks) -> anyhow::Result<(Stream, Stream)> {
    let (hand_out, mut requests) = mpsc::unbounded_channel();
    let (drain, watch) = drain::channel();
    tasks.spawn("tunnel server", async move {
        let _running = drain;
        let settings = Settings::default();
        let _ = server::serve(far, &settings, watch, |request| {
            let _ = hand_out.send(request);
        })
        .await;
    });
    let tunnel = client::start(near, &Settings::default(), tasks)?;
    let head = Head::new("10.0.0.1:80".parse()?);
    let accept =
        async { requests.recv().await.context("no CONNECT came")?.accept(None).context("client left") };
    let (opened, far) = tokio::join!(tunnel.open(&head), accept);
    Ok((opened?.0, far?))
}

/// Transfers of `TRANSFER` bytes, each confirmed by one byte.
async fn transfer(path: Path, times: u64) -> anyhow::Result<Duration> {
    let tasks = Tasks::new("bench");
    let (mut client, mut server) = joined(path, &tasks).await?;
    tasks.spawn("receiver", async move {
        let mut buffer = vec![0; 1 << 20];
        let mut left = TRANSFER;
        while let Ok(n @ 1..) = server.read(&mut buffer).await {
            left -= n;
            if left == 0 {
                left = TRANSFER;
                if server.write_all(&[1]).await.is_err() {
                    return;
                }
            }
        }
    });
    let data = vec![7; WRITE];
    let start = Instant::now();
    for _ in 0..times {
        for _ in 0..TRANSFER / WRITE {
            client.write_all(&data).await?;
        }
        client.read_u8().await?;
    }
    Ok(start.elapsed())
}

/// Exchanges of one small message each way.
async fn exchange(path: Path, times: u64) -> anyhow::Result<Duration> {
    let tasks = Tasks::new("bench");
    let (mut client, mut server) = joined(path, &tasks).await?;
    tasks.spawn("echo", async move {
        let mut message = [0; MESSAGE];
        while server.read_exact(&mut message).await.is_ok() && server.write_all(&message).await.is_ok() {}
    });
    let mut message = [7; MESSAGE];
    let start = Instant::now();
    for _ in 0..times {
        client.write_all(&message).await?;
        client.read_exact(&mut message).await?;
        black_box(&message);
    }
    Ok(start.elapsed())
}

/// Criterion takes no error: a bench that cannot run panics with the reason.
fn measured(runtime: &Runtime, work: impl Future<Output = anyhow::Result<Duration>>) -> Duration {
    runtime.block_on(work).unwrap_or_else(|error| panic!("the bench could not run: {error:#}"))
}

fn tunnel(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap_or_else(|error| panic!("no runtime: {error}"));
    let mut group = c.benchmark_group("tunnel throughput");
    group.throughput(Throughput::Bytes(TRANSFER as u64)).sample_size(10);
    for (name, path) in PATHS {
        group.bench_function(name, |b| b.iter_custom(|times| measured(&runtime, transfer(path, times))));
    }
    group.finish();
    let mut group = c.benchmark_group("tunnel exchange");
    group.sample_size(20);
    for (name, path) in PATHS {
        group.bench_function(name, |b| b.iter_custom(|times| measured(&runtime, exchange(path, times))));
    }
    group.finish();
}

criterion_group!(benches, tunnel);
criterion_main!(benches);
