//! What a storm of new tunnels does to open ones: the round trip of one byte through a tunnel that is open, while nothing
//! else happens and while a thousand others a second are made to the same agent, by a peer on this machine; with handshakes
//! computed on the compute thread, and in place. The same storm on another agent of the process is the control.
//!
//! `-- 2000` is another number per second.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isthmus_hbone::client::{self, Tunnel};
use isthmus_hbone::session::TlsSession;
use isthmus_hbone::{Head, Settings};
use isthmus_identity::fake::FakeSigner;
use isthmus_identity::{CertSource as _, Certificate, Manager};
use isthmus_model::{Authority, PodRef, Protocol, SpiffeId, Workload};
use isthmus_proxy::{BoundListener, Config, Listeners, Metrics, NoHostResolver, PodProxy, ProxyContext};
use isthmus_rt::drain;
use isthmus_rt::fair::FairScheduler;
use isthmus_rt::metrics::Registry;
use isthmus_rt::task::Tasks;
use isthmus_rt::threads::Threads;
use isthmus_state::{Batch, Options, State};
use isthmus_sys::socket::Sockets;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// New tunnels per second.
const RATE: u64 = 1000;
/// Of one measurement.
const LASTS: Duration = Duration::from_secs(5);
/// Between two round trips.
const PACE: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<()> {
    let rate = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(RATE);
    isthmus_identity::install_crypto_provider();
    let own = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (threads, _running) = Threads::start("data", 1)?;
    // The first thread of a group without a compute thread: handshakes are computed in place.
    let (alone, _beside) = Threads::start("alone", 1)?;
    let alone = {
        let _inside = alone.enter(alone.next());
        Threads::current()
    };
    own.block_on(async {
        let [beside, in_place] = [Agent::start(&threads).await?, Agent::start(&alone).await?];
        for _ in 0..2 {
            for (kind, agent, other) in
                [("in place", &in_place, &beside), ("compute thread", &beside, &in_place)]
            {
                println!("{kind}, quiet: {}", agent.measure(agent, 0).await?);
                println!("{kind}, storm: {}", agent.measure(agent, rate).await?);
                // What of it is the processors that all parties share.
                println!("{kind}, storm on another agent: {}", agent.measure(other, rate).await?);
            }
        }
        Ok(())
    })
}

/// One pod's agent on loopback, with an application that echoes, and a client's certificate.
struct Agent {
    proxy: PodProxy,
    hbone: SocketAddr,
    app: SocketAddr,
    server: SpiffeId,
    certificate: Arc<Certificate>,
    tasks: Tasks,
    threads: Threads,
    _drain: drain::Drain,
}

impl Agent {
    async fn start(threads: &Threads) -> Result<Self> {
        let tasks = Tasks::new("bench");
        let certs = Manager::new(Arc::new(FakeSigner::new()), isthmus_identity::Config::default(), &tasks);
        let config = Config::default();
        let state = State::new(Options { ports: config.ports, ..Options::default() });
        let [client, server] = ["client", "server"].map(workload);
        let certificate = certs.certificate(&client.identity()).await?;
        certs.certificate(&server.identity()).await?;
        state.apply(Batch { upsert_workloads: vec![client, server.clone()], ..Batch::default() });
        let proxy = Arc::new(ProxyContext {
            state,
            certs: Arc::new(certs),
            network: "".into(),
            host_resolver: Arc::new(NoHostResolver),
            cluster_id: "c".into(),
            settings: Settings::default(),
            config,
            metrics: Metrics::register(&Registry::default()),
            scheduler: FairScheduler::new(threads),
            threads: threads.clone(),
        });
        let (drain, watch) = drain::channel();
        let pod = PodRef {
            uid: "server".into(),
            name: "server".into(),
            namespace: "ns".into(),
            service_account: "server".into(),
        };
        let (proxy, hbone) = {
            let _inside = threads.enter(threads.next());
            let bind = || BoundListener::from_std(std::net::TcpListener::bind("127.0.0.2:0")?, false);
            let listeners = Listeners { outbound: bind()?, inbound: bind()?, inbound_plaintext: bind()? };
            let hbone = listeners.inbound.local_addr()?;
            (PodProxy::start(proxy, pod, listeners, Sockets::host(), watch), hbone)
        };
        let app = echo(&tasks).await?;
        let threads = threads.clone();
        Ok(Self { proxy, hbone, app, server: server.identity(), certificate, tasks, threads, _drain: drain })
    }

    async fn measure(&self, target: &Self, rate: u64) -> Result<String> {
        let tunnel = dial(&self.certificate, &self.server, self.hbone, &self.tasks).await?;
        let (mut stream, _) = tunnel.open(&Head::new(Authority::Ip(self.app))).await?;
        let storm = Storm::start(target, rate);
        let cpu = self.busy();
        let (mut took, started) = (Vec::new(), Instant::now());
        while started.elapsed() < LASTS {
            tokio::time::sleep(PACE).await;
            let sent = Instant::now();
            stream.send(b"x").await?;
            let echoed =
                tokio::time::timeout(PATIENCE, stream.recv()).await?.context("the stream ended")??;
            stream.release(echoed.len());
            took.push(sent.elapsed());
        }
        let (busy, made) = (self.busy() - cpu, storm.stop());
        took.sort_unstable();
        let at = |permille: usize| took[(took.len() - 1) * permille / 1000];
        ensure!(self.proxy.connections().inbound.len() == 1, "the open tunnel");
        Ok(format!(
            "round trip p50 {:?} p99 {:?} max {:?}; {made} tunnels in {LASTS:?}, data thread busy for {busy:?}",
            at(500),
            at(990),
            at(1000)
        ))
    }

    fn busy(&self) -> Duration {
        self.threads
            .iter()
            .map(|thread| self.threads.handle(thread).metrics().worker_total_busy_duration(0))
            .sum()
    }
}

/// A peer, on a thread of its own, that makes tunnels at a pace and closes each when it is open.
struct Storm {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<Result<()>>>,
}

impl Storm {
    fn start(agent: &Agent, rate: u64) -> Self {
        let (stop, made) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (certificate, server, hbone) =
            (Arc::clone(&agent.certificate), agent.server.clone(), agent.hbone);
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&made));
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async move {
                let tasks = Tasks::new("storm");
                let started = Instant::now();
                let mut begun = 0;
                while !stopped.load(Ordering::Relaxed) {
                    let due =
                        u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX) / 1000 * rate / 1000;
                    // What could not be begun in time is not made up for in one burst.
                    begun = begun.max(due.saturating_sub(rate / 50));
                    while begun < due {
                        begun += 1;
                        let (certificate, server, count) =
                            (Arc::clone(&certificate), server.clone(), Arc::clone(&count));
                        tasks.spawn("tunnel", async move {
                            if session(&certificate, &server, hbone).await.is_ok() {
                                count.fetch_add(1, Ordering::Relaxed);
                            }
                        });
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                anyhow::Ok(())
            })
        };
        let thread = (rate > 0).then(|| std::thread::spawn(run));
        Self { stop, made, thread }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread {
            let _ = thread.join();
        }
        self.made.load(Ordering::Relaxed)
    }
}

async fn session(
    certificate: &Certificate,
    server: &SpiffeId,
    to: SocketAddr,
) -> Result<TlsSession<TcpStream>> {
    let tls = certificate.client_tls(std::slice::from_ref(server));
    let tcp = TcpStream::connect(to).await?;
    tcp.set_nodelay(true)?;
    TlsSession::connect(tls.config(), tcp, PATIENCE).await.context("handshake")
}

async fn dial(certificate: &Certificate, server: &SpiffeId, to: SocketAddr, tasks: &Tasks) -> Result<Tunnel> {
    Ok(client::start(session(certificate, server, to).await?, &Settings::default(), tasks)?)
}

async fn echo(tasks: &Tasks) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.2:0").await?;
    let address = listener.local_addr()?;
    let connections = Tasks::new("echo");
    tasks.spawn("echo", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn("echo", async move {
                let mut byte = [0];
                while stream.read_exact(&mut byte).await.is_ok() && stream.write_all(&byte).await.is_ok() {}
            });
        }
    });
    Ok(address)
}

fn workload(name: &str) -> Workload {
    Workload {
        uid: format!("c//Pod/ns/{name}").into(),
        name: name.into(),
        namespace: "ns".into(),
        service_account: name.into(),
        addresses: vec![if name == "server" { [127, 0, 0, 2] } else { [127, 0, 0, 1] }.into()],
        protocol: Protocol::Hbone,
        workload_name: name.into(),
        ..Workload::default()
    }
}
