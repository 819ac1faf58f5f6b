//! Two nodes: an attacker and a victim on the first, a server and the victim's neighbour on the second.

use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use isthmus_identity::{CertSource as _, Manager, fake::FakeSigner, manager};
use isthmus_kit::hbone::HbonePeer;
use isthmus_kit::lab::{self, Host};
use isthmus_kit::tls::{self, TlsStream};
use isthmus_kit::two_nodes::{Agent, TwoNodes};
use isthmus_kit::zds::{ZdsPeer, ZdsPod};
use isthmus_model::SpiffeId;
use isthmus_node::rules::{self, PodRules};
use isthmus_rt::task::Tasks;
use isthmus_sys::netns::Netns;
use isthmus_sys::socket::{Sockets, Transparent};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::cgroup::Cgroup;

pub(crate) const MIB: u64 = 1024 * 1024;
/// What the agents may have.
pub(crate) const LIMIT: u64 = 256 * MIB;
/// What may remain of an attack.
const REMAINS: u64 = 10 * MIB;
/// How long it may take to give memory back.
const SETTLE: Duration = Duration::from_secs(20);
/// Round trips of the victim in one round, and rounds: the median of their p99s counts.
const ROUND_TRIPS: usize = 150;
const ROUNDS: usize = 5;
/// Delays below this are the machine's: attacker, both agents and victim share the cores with whatever else runs, and the
/// agents may be built without optimization. What is printed says more than what is asserted.
pub(crate) const NOISE: Duration = Duration::from_millis(25);

/// Ports of the server: sends without end; never reads; echoes.
pub(crate) const SOURCE: u16 = 9000;
pub(crate) const DEAF: u16 = 9001;
pub(crate) const ECHO: u16 = 8080;

/// What pods of an agent may have open.
pub(crate) const DESCRIPTORS: usize = 3584;

/// A step of an attacker.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct World {
    pub(crate) lab: TwoNodes,
    victim: Host,
    neighbour: Host,
    pub(crate) agents: Vec<Agent>,
    limited: bool,
    /// Connections of the application that does not read. They end with the attack: what is for an application that may still
    /// read is kept.
    deaf: Arc<Mutex<Vec<TcpStream>>>,
    zds: Vec<ZdsPeer>,
    _groups: Vec<Option<Cgroup>>,
}

/// The attacker's side of a case.
pub(crate) struct Cue {
    ready: mpsc::Sender<()>,
    end: oneshot::Receiver<()>,
}

impl Cue {
    /// A cue, what is heard when the attack has reached its height, and what ends it when it is dropped.
    pub(crate) fn new() -> (Self, mpsc::Receiver<()>, oneshot::Sender<()>) {
        let ((ready, is_ready), (end, at_end)) = (mpsc::channel(), oneshot::channel());
        (Self { ready, end: at_end }, is_ready, end)
    }

    /// The attack has reached its height: holds it until the victim was measured.
    pub(crate) async fn hold(self) {
        let _ = self.ready.send(());
        let _ = self.end.await;
    }
}

impl World {
    pub(crate) async fn new() -> Result<Self> {
        let mut lab = TwoNodes::new()?;
        lab.environment.push(("ISTHMUS_MEMORY_BUDGET".to_owned(), "64Mi".to_owned()));
        // What a limit of 4,096 open files leaves to pods.
        lab.environment.push(("ISTHMUS_DESCRIPTOR_BUDGET".to_owned(), DESCRIPTORS.to_string()));
        let (victim, neighbour) = (lab.lan.host()?, lab.lan.host()?);
        let pod = |name: &str, host: &Host, node: &str| {
            format!(
                "- {{uid: c1//Pod/ns/{name}, name: {name}, namespace: ns, serviceAccount: {name}, network: net1, \
                 clusterId: c1, workloadIps: [{}], protocol: HBONE, node: {node}, services: {{}}}}\n",
                host.v4
            )
        };
        let more = [pod("victim", &victim, "n0"), pod("neighbour", &neighbour, "n1")].concat();
        let local = lab.local("").replacen("services:\n-", &format!("{more}services:\n-"), 1);
        let (agent0, zds0) = lab.serve(0, &lab.client, "client", &local, captured).await?;
        let (agent1, zds1) = lab.serve(1, &lab.server, "server", &local, captured).await?;
        for (zds, host, name) in [(&zds0, &victim, "victim"), (&zds1, &neighbour, "neighbour")] {
            captured(&host.netns)?;
            let info = ZdsPod { uid: name, name, namespace: "ns", service_account: name };
            ensure!(zds.add(&info, host.netns.fd()).await?.is_none(), "add {name}");
        }
        lab::echo(&neighbour.sockets(), SocketAddr::new(neighbour.v4.into(), ECHO), &lab.tasks)?;
        lab::echo(&lab.server.sockets(), SocketAddr::new(lab.server.v4.into(), ECHO), &lab.tasks)?;
        let agents = vec![agent0, agent1];
        let groups: Vec<_> = agents.iter().map(|agent| Cgroup::with(agent.pid(), LIMIT)).collect();
        let limited = groups.iter().all(Option::is_some);
        if !limited {
            eprintln!("no cgroup can be made here: only the peaks of the agents' memory are checked");
        }
        Ok(Self {
            lab,
            victim,
            neighbour,
            agents,
            limited,
            deaf: Arc::default(),
            zds: vec![zds0, zds1],
            _groups: groups,
        })
    }

    /// Measures the victim in quiet and under an attack on an agent, and what the attack leaves behind. The attack runs on
    /// a thread of its own.
    pub(crate) async fn judge<F>(
        &self,
        at: usize,
        attack: impl FnOnce(Cue) -> F + Send + 'static,
    ) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        let mut victim = self.victim_connection().await?;
        let quiet = p99(&mut victim).await?;
        let before = self.anonymous(at)?;
        let (cue, is_ready, end) = Cue::new();
        let attacker = std::thread::spawn(move || lab::block_on(attack(cue)));
        let start = Instant::now();
        while is_ready.try_recv().is_err() {
            ensure!(start.elapsed() < Duration::from_secs(60), "the attack does not reach its height");
            if attacker.is_finished() {
                attacker.join().map_err(|_| anyhow::anyhow!("the attacker panicked"))??;
                bail!("the attack ended before its height");
            }
            round_trip(&mut victim).await.context("the victim, while the attack builds up")?;
        }
        let attacked = p99(&mut victim).await.context("the victim, under attack");
        let height = self.anonymous(at).context("the agent is dead")?;
        drop(end);
        attacker.join().map_err(|_| anyhow::anyhow!("the attacker panicked"))??;
        self.deaf.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let (attacked, peak) = (attacked?, self.status(at, "VmHWM:")?);
        let after = self.settled(at, before).await?;
        eprintln!(
            "victim's p99 {quiet:?} -> {attacked:?}; agent: {} -> {} -> {} KiB, peak {} KiB{}",
            before / 1024,
            height / 1024,
            after / 1024,
            peak / 1024,
            if self.limited { ", in a cgroup of 256 MiB" } else { "" },
        );
        ensure!(peak < LIMIT, "the agent's peak was {} MiB", peak / MIB);
        ensure!(attacked <= (2 * quiet).max(NOISE), "the victim's p99 went from {quiet:?} to {attacked:?}");
        ensure!(after <= before + REMAINS, "{} MiB remain after {SETTLE:?}", (after - before) / MIB);
        // New connections work as well.
        round_trip(&mut self.victim_connection().await?).await
    }

    async fn settled(&self, at: usize, before: u64) -> Result<u64> {
        let start = Instant::now();
        loop {
            let now = self.anonymous(at)?;
            if now <= before + REMAINS || start.elapsed() > SETTLE {
                return Ok(now);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn status(&self, at: usize, key: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.agents[at].pid()))?;
        let line =
            status.lines().find_map(|line| line.strip_prefix(key)).context("no such line: it has exited")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }

    fn anonymous(&self, at: usize) -> Result<u64> {
        self.status(at, "RssAnon:")
    }

    /// Open descriptors of an agent.
    pub(crate) fn descriptors(pid: u32) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
    }

    async fn victim_connection(&self) -> Result<TcpStream> {
        let to = SocketAddr::new(self.neighbour.v4.into(), ECHO);
        let stream = self.victim.sockets().connect(to, None, PATIENCE).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Where a scripted peer attacks the server's pod from.
    pub(crate) fn peer(&self) -> Peer {
        self.peer_at(&self.lab.outsider)
    }

    /// A peer at another host.
    pub(crate) fn peer_at(&self, host: &Host) -> Peer {
        Peer { from: host.sockets(), to: self.server(15008) }
    }

    /// Hands a pod over to an agent; the reason when it is refused.
    pub(crate) async fn add(&self, at: usize, name: &str, host: &Host) -> Result<Option<String>> {
        let info = ZdsPod { uid: name, name, namespace: "ns", service_account: name };
        self.zds[at].add(&info, host.netns.fd()).await
    }

    /// The victim's sockets, and the service that it uses.
    pub(crate) fn victim(&self) -> (Sockets, SocketAddr) {
        (self.victim.sockets(), SocketAddr::new(self.neighbour.v4.into(), ECHO))
    }

    /// An address of the server.
    pub(crate) fn server(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.lab.server.v4.into(), port)
    }

    /// Starts the server's applications that send without end, and that never read.
    pub(crate) fn applications(&self) -> Result<()> {
        let sockets = self.lab.server.sockets();
        let (source, _) = sockets.listen(self.server(SOURCE), Transparent::Never)?;
        let (deaf, _) = sockets.listen(self.server(DEAF), Transparent::Never)?;
        let connections = Tasks::new("source");
        self.lab.tasks.spawn("source", async move {
            while let Ok((mut stream, _)) = source.accept().await {
                connections.spawn("source connection", async move {
                    while stream.write_all(&[0; 16 * 1024]).await.is_ok() {}
                });
            }
        });
        let all = Arc::clone(&self.deaf);
        self.lab.tasks.spawn("deaf", async move {
            while let Ok((stream, _)) = deaf.accept().await {
                all.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
            }
        });
        Ok(())
    }
}

/// A peer with a certificate of the mesh.
#[derive(Clone)]
pub(crate) struct Peer {
    pub(crate) from: Sockets,
    pub(crate) to: SocketAddr,
}

pub(crate) type Session = HbonePeer<TlsStream<TcpStream>>;

impl Peer {
    pub(crate) async fn connect(&self, tasks: &Tasks) -> Result<Session> {
        let certs = Manager::new(Arc::new(FakeSigner::new()), manager::Config::default(), tasks);
        self.connect_as(&certs).await
    }

    pub(crate) async fn connect_as(&self, certs: &Manager) -> Result<Session> {
        let id = |name: &str| -> Result<SpiffeId> {
            Ok(format!("spiffe://cluster.local/ns/ns/sa/{name}").parse()?)
        };
        let certificate = certs.certificate(&id("attacker")?).await?;
        let tcp = self.from.connect(self.to, None, PATIENCE).await?;
        let tls = tls::connect(certificate.client_tls(&[id("server")?]).config(), tcp).await?;
        HbonePeer::client(tls).await
    }
}

pub(crate) fn captured(pod: &Netns) -> Result<()> {
    Ok(rules::apply_pod(pod, &PodRules { dns_capture: false, ..PodRules::default() })?)
}

pub(crate) async fn round_trip(stream: &mut TcpStream) -> Result<()> {
    let mut answer = [0; 256];
    let exchange = async {
        stream.write_all(&[7; 256]).await?;
        stream.read_exact(&mut answer).await
    };
    tokio::time::timeout(PATIENCE, exchange).await.context("no answer")??;
    Ok(())
}

/// The median of the rounds' 99th percentiles.
pub(crate) async fn p99(stream: &mut TcpStream) -> Result<Duration> {
    let mut all = Vec::new();
    for _ in 0..ROUNDS {
        let mut round = Vec::new();
        for _ in 0..ROUND_TRIPS {
            let start = Instant::now();
            round_trip(stream).await?;
            round.push(start.elapsed());
        }
        round.sort_unstable();
        all.push(round[ROUND_TRIPS * 99 / 100]);
    }
    all.sort_unstable();
    Ok(all[ROUNDS / 2])
}
