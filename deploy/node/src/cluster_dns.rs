//! The stand-in for CoreDNS: answers for the Services of one cluster, over UDP and TCP. It has no upstream: a name that
//! is not the cluster's does not exist.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use isthmus_rt::task::Tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;

use playground_k8s::client::Client;
use playground_k8s::manifest::Kind;
use playground_k8s::mirror::Mirror;

mod names;

use names::Names;

/// Where it runs.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The API server.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Where to listen, UDP and TCP.
    #[arg(long, default_value = "0.0.0.0:53")]
    listen: SocketAddr,
    /// The cluster's domain.
    #[arg(long, default_value = "cluster.local")]
    domain: String,
}

/// A TCP client that is silent for so long is dropped.
const IDLE: Duration = Duration::from_secs(10);

type Known = watch::Receiver<Arc<Names>>;

/// Runs for ever.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let client = Client::from_kubeconfig(&options.kubeconfig).await?;
    let tasks = Tasks::new("cluster-dns");
    let mut services = Mirror::follow(&client, Kind::known("Service")?, &tasks);
    let mut pods = Mirror::follow(&client, Kind::known("Pod")?, &tasks);
    let (publish, known) = watch::channel(Arc::new(Names::default()));
    let mut listening = Some(known);
    loop {
        tokio::select! {
            changed = services.changed() => changed?,
            changed = pods.changed() => changed?,
        }
        if !(services.is_synced() && pods.is_synced()) {
            continue;
        }
        publish.send_replace(Arc::new(Names::of(&options.domain, services.objects(), pods.objects())));
        // Nothing is answered before everything is known: a name that exists must not be denied.
        if let Some(known) = listening.take() {
            listen(options.listen, &known, &tasks).await?;
        }
    }
}

async fn listen(at: SocketAddr, known: &Known, tasks: &Tasks) -> anyhow::Result<()> {
    let udp = UdpSocket::bind(at).await.with_context(|| format!("cannot listen on udp {at}"))?;
    let tcp = TcpListener::bind(at).await.with_context(|| format!("cannot listen on tcp {at}"))?;
    tracing::info!(%at, "cluster DNS is listening");
    tasks.spawn("udp", serve_udp(udp, known.clone()));
    tasks.spawn("tcp", serve_tcp(tcp, known.clone()));
    Ok(())
}

async fn serve_udp(socket: UdpSocket, known: Known) {
    let mut query = vec![0; 4096];
    loop {
        // An error tells that an earlier answer was not delivered; nothing is wrong with the socket.
        let Ok((length, client)) = socket.recv_from(&mut query).await else { continue };
        let names = Arc::clone(&known.borrow());
        if let Some(answer) = names.answer(&query[..length]) {
            // The client asks again if this is lost.
            let _ = socket.send_to(&answer, client).await;
        }
    }
}

async fn serve_tcp(listener: TcpListener, known: Known) {
    let connections = Tasks::new("dns connections");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let known = known.clone();
                connections.spawn("connection", async move {
                    // A client that closes its connection is no error of the server.
                    let _ = serve_stream(stream, &known).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a DNS connection over TCP");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve_stream(mut stream: TcpStream, known: &Known) -> std::io::Result<()> {
    loop {
        let length = tokio::time::timeout(IDLE, stream.read_u16()).await??;
        let mut query = vec![0; usize::from(length)];
        tokio::time::timeout(IDLE, stream.read_exact(&mut query)).await??;
        let names = Arc::clone(&known.borrow());
        let Some(answer) = names.answer(&query) else { return Ok(()) };
        let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
        stream.write_all(&[&length.to_be_bytes(), &answer[..]].concat()).await?;
    }
}
