//! A node whose agent has a control plane that turns hostile: a victim in front of a server that it knows, the control
//! plane on a thread of its own, and the judgement of what the victim noticed.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use isthmus_kit::istiod::{AdsStream, Istiod, resource, response};
use isthmus_kit::lab::{self, Host, Lan};
use isthmus_kit::pki::Ca;
use isthmus_kit::probe;
use isthmus_kit::process::Process;
use isthmus_kit::wait::{until, within};
use isthmus_kit::zds::{ZdsPeer, ZdsPod, ZdsServer};
use isthmus_proto::discovery::Resource;
use isthmus_proto::{type_url, workload};
use isthmus_rt::task::Tasks;
use isthmus_sys::netns::Netns;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::ca;
use crate::cgroup::Cgroup;
use crate::world::{Cue, LIMIT, MIB, NOISE, captured, p99, round_trip};

/// Where the control plane listens, inside the test's own namespace.
pub(crate) const PLANE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 15012);
/// The server's application.
const ECHO: u16 = 8080;
/// A workload of this node that only a control plane that has recovered describes.
pub(crate) const LATE: &str = "late";
/// What the agent may use while it is attacked.
pub(crate) const MEMORY: u64 = 200 * MIB;
/// How long a new connection of the victim may take.
pub(crate) const CONNECTS: Duration = Duration::from_secs(2);
/// How long the agent may take to notice that the control plane is sane again: its longest backoff, and some more.
const RECOVERY: Duration = Duration::from_secs(40);

/// The control plane as its thread holds it.
pub(crate) struct Plane {
    pub(crate) ca: Arc<Ca>,
    pub(crate) istiod: Istiod,
    /// The stream that the agent got its configuration by.
    pub(crate) stream: AdsStream,
}

/// What must be true of an attack besides the victim's fate.
pub(crate) struct Expected {
    /// Parts of the one line that says what is wrong, and with whom; none where nothing is.
    pub(crate) blamed: &'static [&'static str],
    /// Warnings and errors at most.
    pub(crate) complaints: usize,
    /// CPU time that the agent may use in each second of the attack, in percent of a core.
    pub(crate) cpu: u64,
}

/// The node.
pub(crate) struct PlaneLab {
    _lan: Lan,
    own: Netns,
    victim: Host,
    server: Host,
    _tasks: Tasks,
    dir: TempDir,
    /// Whether certificates are due for renewal as soon as they are signed.
    due: bool,
}

impl Expected {
    /// A hostile control plane is named in one line, and costs next to nothing.
    pub(crate) fn blame(blamed: &'static [&'static str]) -> Self {
        Self { blamed, complaints: 8, cpu: 40 }
    }
}

impl Plane {
    /// The next stream of the agent, after its first requests.
    pub(crate) async fn next_stream(&mut self) -> Result<AdsStream> {
        let mut stream = self.istiod.next_stream().await?;
        stream.subscriptions().await?;
        Ok(stream)
    }

    async fn sane(ca: Arc<Ca>, sane: Vec<Resource>, due: bool) -> Result<Self> {
        // An earlier one's listener goes with its runtime's next turn.
        let istiod = within(RECOVERY, async || Istiod::start_at(PLANE, &ca).await.ok());
        let mut istiod = istiod.await.context("the control plane's port stays taken")?;
        if due {
            ca::sane(&istiod, &ca);
        }
        // The agent may be in its longest backoff.
        let stream = within(RECOVERY, async || istiod.next_stream().await.ok());
        let mut stream = stream.await.context("no stream was opened")?;
        stream.subscriptions().await?;
        stream.push(&response(type_url::ADDRESS, "sane-1", sane, &[]));
        stream.push(&response(type_url::AUTHORIZATION, "sane-2", Vec::new(), &[]));
        for _ in 0..2 {
            let ack = stream.recv().await?;
            ensure!(ack.error_detail.is_none(), "{:?}", ack.error_detail);
        }
        Ok(Self { ca, istiod, stream })
    }
}

/// A workload of the mesh.
pub(crate) fn workload(name: &str, address: &[u8], node: &str) -> workload::Workload {
    workload::Workload {
        uid: format!("c1//Pod/ns/{name}"),
        name: name.to_owned(),
        namespace: "ns".to_owned(),
        service_account: name.to_owned(),
        trust_domain: "cluster.local".to_owned(),
        network: "net1".to_owned(),
        cluster_id: "c1".to_owned(),
        node: node.to_owned(),
        tunnel_protocol: workload::TunnelProtocol::Hbone.into(),
        addresses: vec![address.to_vec()],
        ..workload::Workload::default()
    }
}

/// A workload as a resource under its own name.
pub(crate) fn named(workload: workload::Workload) -> Resource {
    let name = workload.uid.clone();
    let address = workload::Address { r#type: Some(workload::address::Type::Workload(workload)) };
    resource(type_url::ADDRESS, &name, "1", &address)
}

impl PlaneLab {
    pub(crate) fn new() -> Result<Self> {
        let lan = Lan::new()?;
        let (victim, server, tasks) = (lan.host()?, lan.host()?, Tasks::new("lab"));
        lab::echo(&server.sockets(), SocketAddr::new(server.v4.into(), ECHO), &tasks)?;
        for pod in [&victim, &server] {
            captured(&pod.netns)?;
        }
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("token"), "a token")?;
        Ok(Self { _lan: lan, own: Netns::current()?, victim, server, _tasks: tasks, dir, due: false })
    }

    /// With certificates that are due for renewal as soon as they are signed.
    pub(crate) fn due(mut self) -> Self {
        self.due = true;
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn workloads(&self) -> Vec<Resource> {
        let pod = |name: &str, host: &Host| named(workload(name, &host.v4.octets(), "n0"));
        vec![pod("victim", &self.victim), pod("server", &self.server)]
    }

    fn agent(&self, ca: &Ca) -> Result<Process> {
        let (root, token, zds) = (self.path("root.pem"), self.path("token"), self.path("zds.sock"));
        fs::write(&root, ca.root_pem())?;
        let (root, token, zds) =
            (root.display().to_string(), token.display().to_string(), zds.display().to_string());
        let url = format!("https://{PLANE}");
        let env = [
            ("XDS_ADDRESS", url.as_str()),
            ("CA_ADDRESS", &url),
            ("XDS_ROOT_CA", &root),
            ("CA_ROOT_CA", &root),
            ("AUTH_TOKEN", &token),
            ("NETWORK", "net1"),
            ("CLUSTER_ID", "c1"),
            ("NODE_NAME", "n0"),
            ("INPOD_UDS", &zds),
            // What a container of 256 MiB is given where there can be no cgroup.
            ("ISTHMUS_MEMORY_BUDGET", "64Mi"),
            ("ISTHMUS_CONFIG_BUDGET", "64Mi"),
        ];
        Process::start(&self.own, "isthmus", &["proxy", "ztunnel"], &env, "")
    }

    async fn hand_over(&self, node: &mut ZdsServer) -> Result<ZdsPeer> {
        let agent = node.accept().await?;
        for (name, pod) in [("victim", &self.victim), ("server", &self.server)] {
            let info = ZdsPod { uid: name, name, namespace: "ns", service_account: name };
            ensure!(agent.add(&info, pod.netns.fd()).await?.is_none(), "add {name}");
        }
        ensure!(agent.snapshot_sent().await?.is_none(), "snapshot_sent");
        Ok(agent)
    }

    async fn connect(&self) -> Result<TcpStream> {
        let to = SocketAddr::new(self.server.v4.into(), ECHO);
        let connected = async {
            let mut stream = self.victim.sockets().connect(to, None, CONNECTS).await?;
            stream.set_nodelay(true)?;
            round_trip(&mut stream).await?;
            anyhow::Ok(stream)
        };
        tokio::time::timeout(CONNECTS, connected).await.context("a new connection takes too long")?
    }

    #[expect(clippy::too_many_lines, reason = "one attack from beginning to end, in the order of its steps")]
    /// Serves the victim by a sane control plane, by a hostile one, and by a sane one again, and compares.
    pub(crate) async fn judge<F>(
        self,
        expected: Expected,
        attack: impl FnOnce(Plane, Cue) -> F + Send + 'static,
    ) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        let ca = Arc::new(Ca::new("root")?);
        let mut node = ZdsServer::bind(&self.path("zds.sock"))?;
        let mut agent = self.agent(&ca)?;
        let group = Cgroup::with(agent.pid(), LIMIT);
        let (cue, is_ready, end) = Cue::new();
        let ((go, at_go), (done, is_done)) = (oneshot::channel::<()>(), mpsc::channel::<()>());
        let (workloads, plane_ca, due) = (self.workloads(), Arc::clone(&ca), self.due);
        let plane = std::thread::spawn(move || {
            lab::block_on(async {
                let plane = Plane::sane(Arc::clone(&plane_ca), workloads.clone(), due).await?;
                let _ = at_go.await;
                attack(plane, cue).await.context("the attack")?;
                let late = named(workload(LATE, &[10, 77, 1, 200], "n0"));
                let plane = Plane::sane(plane_ca, [workloads, vec![late]].concat(), due).await?;
                drop(is_done);
                // Kept until the test ends with its process.
                std::future::pending::<()>().await;
                drop(plane);
                Ok(())
            })
        });
        let _zds = self.hand_over(&mut node).await?;
        until("served", async || self.connect().await.is_ok()).await?;
        let mut victim = self.connect().await?;
        let quiet = p99(&mut victim).await?;
        let before = complaints(&agent).len();
        drop(go);
        if !go_on(&self, &mut victim, &is_ready, &plane).await? {
            plane.join().map_err(|_| anyhow::anyhow!("the control plane panicked"))??;
            bail!("the attack ended before its height");
        }
        let (started, busy) = (Instant::now(), cpu(agent.pid())?);
        let mut attacked = Vec::new();
        while started.elapsed() < Duration::from_secs(3) {
            self.connect().await.context("a new connection, under attack")?;
            attacked.push(p99(&mut victim).await.context("the victim, under attack")?);
        }
        attacked.sort_unstable();
        let attacked = attacked[attacked.len() / 2];
        // Without the victim's own traffic.
        let (quiet_start, quiet_busy) = (Instant::now(), cpu(agent.pid())?);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let percent = (cpu(agent.pid())? - quiet_busy) * 100_000
            / 1000
            / u64::try_from(quiet_start.elapsed().as_millis())?.max(1);
        drop(end);
        // Recovery.
        let recovered = Instant::now();
        while done.send(()).is_ok() {
            ensure!(recovered.elapsed() < RECOVERY * 2, "it does not recover: {:#?}", complaints(&agent));
            round_trip(&mut victim).await.context("the victim, while the control plane recovers")?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if plane.is_finished() {
            plane.join().map_err(|_| anyhow::anyhow!("the control plane panicked"))??;
            bail!("the control plane has ended");
        }
        until("the late workload", async || self.knows(LATE).await).await?;
        let recovered = recovered.elapsed();
        round_trip(&mut self.connect().await?).await?;
        let peak = status(agent.pid(), "VmHWM:")?;
        let all = complaints(&agent);
        let new: Vec<_> = all.into_iter().skip(before).collect();
        eprintln!(
            "victim's p99 {quiet:?} -> {attacked:?}; cpu {percent} %, {} ms in all; peak {} MiB{}; recovered in \
             {recovered:?}; {} complaints",
            (cpu(agent.pid())? - busy) * 10,
            peak / MIB,
            if group.is_some() { ", in a cgroup of 256 MiB" } else { "" },
            new.len(),
        );
        for line in new.iter().take(12) {
            eprintln!("  {}", line.chars().take(400).collect::<String>());
        }
        ensure!(attacked <= (2 * quiet).max(NOISE), "the victim's p99 went from {quiet:?} to {attacked:?}");
        ensure!(peak < MEMORY, "the agent's peak was {} MiB", peak / MIB);
        ensure!(percent <= expected.cpu, "the agent used {percent} % of a core");
        ensure!(new.len() <= expected.complaints, "{} complaints", new.len());
        ensure!(
            new.iter().all(|line| line.len() < 2000),
            "a line of {:?} bytes",
            new.iter().map(String::len).max()
        );
        // A line break in what the control plane sent must not begin a line.
        ensure!(
            !agent
                .lines()
                .iter()
                .any(|line| line.text.starts_with("2026\t") || line.text.starts_with("forged"))
        );
        let named = |line: &&String| expected.blamed.iter().all(|part| line.contains(part));
        ensure!(expected.blamed.is_empty() || new.iter().any(|line| named(&line)), "nobody is blamed");
        ensure!(agent.exited()?.is_none(), "the agent is dead");
        Ok(())
    }

    async fn knows(&self, name: &str) -> bool {
        let dump = probe::get(&self.own, "127.0.0.1:15000", "/config_dump").await;
        dump.is_ok_and(|answer| answer.body.contains(&format!("c1//Pod/ns/{name}\"")))
    }
}

/// Lets the victim talk until the attack is at its height; false when the attack ended before.
async fn go_on(
    lab: &PlaneLab,
    victim: &mut TcpStream,
    is_ready: &mpsc::Receiver<()>,
    plane: &std::thread::JoinHandle<Result<()>>,
) -> Result<bool> {
    let start = Instant::now();
    while is_ready.try_recv().is_err() {
        ensure!(start.elapsed() < Duration::from_secs(60), "the attack does not reach its height");
        if plane.is_finished() {
            return Ok(false);
        }
        round_trip(victim).await.context("the victim, while the attack builds up")?;
        lab.connect().await.context("a new connection, while the attack builds up")?;
    }
    Ok(true)
}

/// The warnings and errors in a log.
pub(crate) fn complaints(agent: &Process) -> Vec<String> {
    let serious = |text: &String| text.contains("\twarn\t") || text.contains("\terror\t");
    agent.lines().into_iter().map(|line| line.text).filter(serious).collect()
}

/// CPU time of a process, in hundredths of a second.
pub(crate) fn cpu(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<_> = stat.rsplit(") ").next().context("stat")?.split(' ').collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

pub(crate) fn status(pid: u32, key: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)).context("it has exited")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
