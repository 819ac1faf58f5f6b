//! The cost of a new connection: how many per second two agents carry from a pod on one node to a pod on another, and the
//! processor time of both for each. The same through two ztunnels, in the same run, when `ISTHMUS_UPSTREAM_ZTUNNEL`
//! names its program, and over the same wire without any agent.
//!
//! `-- 20000` is another number of connections than 5,000.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use isthmus_benches::isolated;
use isthmus_kit::binaries;
use isthmus_kit::istiod::Istiod;
use isthmus_kit::lab::{Host, in_ns};
use isthmus_kit::pki::Ca;
use isthmus_kit::two_nodes::TwoNodes;
use isthmus_kit::zds::{ZdsPeer, ZdsPod, ZdsServer};
use isthmus_node::rules::{self, PodRules};
use isthmus_sys::netns::Netns;
use isthmus_sys::sysctl;
use tempfile::TempDir;

const CONNECTIONS: u32 = 5000;
/// Connections before the measurement: they fetch certificates and open the tunnel.
const WARM_UP: u32 = 300;
/// Clients at the same time.
const CLIENTS: u32 = 4;
/// Threads of the server: more than clients, so that none waits for another's connection to be closed.
const SERVERS: usize = 8;
const PORT: u16 = 8080;
const CA_PORT: u16 = 15012;
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Result<ExitCode> {
    isolated(&["isthmus"], measure)
}

/// What the connections pass through.
struct Subject {
    name: &'static str,
    program: Option<PathBuf>,
}

/// What a number of connections took.
struct Figures {
    name: &'static str,
    per_second: f64,
    /// Processor time of each agent, the client's first, for one connection.
    each: Option<[Duration; 2]>,
}

fn measure() -> Result<ExitCode> {
    let number = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(CONNECTIONS);
    let mut subjects = vec![
        Subject { name: "direct", program: None },
        Subject { name: "isthmus", program: Some(binaries::path("isthmus")) },
    ];
    match std::env::var_os("ISTHMUS_UPSTREAM_ZTUNNEL").map(PathBuf::from) {
        Some(program) if program.is_file() => {
            subjects.push(Subject { name: "ztunnel", program: Some(program) });
        }
        Some(program) => anyhow::bail!("ISTHMUS_UPSTREAM_ZTUNNEL: {} is not a file", program.display()),
        None => println!("ISTHMUS_UPSTREAM_ZTUNNEL names no ztunnel: there is nothing to compare with"),
    }
    println!("{number} connections by {CLIENTS} clients, each with a byte there and a byte back");
    let mut all = Vec::new();
    for subject in subjects {
        let figures = subject.measured(number).with_context(|| subject.name)?;
        println!("  {}", figures.line());
        all.push(figures);
    }
    compare(&all);
    Ok(ExitCode::SUCCESS)
}

impl Subject {
    fn measured(&self, number: u32) -> Result<Figures> {
        let lab = TwoNodes::new()?;
        for host in [&lab.client, &lab.server] {
            // With closes in TIME_WAIT the client would soon run out of ports.
            sysctl::write(&host.netns, "net/ipv4/ip_local_port_range", "16384 60999")?;
            sysctl::write(&host.netns, "net/ipv4/tcp_tw_reuse", "1")?;
        }
        let server = serve(&lab.server)?;
        let agents = match &self.program {
            Some(program) => Some(Agents::start(&lab, program)?),
            None => None,
        };
        connections(&lab.client, server, WARM_UP)?;
        let before = agents.as_ref().map(Agents::spent).transpose()?;
        let begun = Instant::now();
        connections(&lab.client, server, number)?;
        let took = begun.elapsed();
        let spent = agents.as_ref().map(Agents::spent).transpose()?;
        let each =
            before.zip(spent).map(|(before, spent)| [0, 1].map(|at| (spent[at] - before[at]) / number));
        if let Some(each) = each {
            ensure!(each.iter().all(|each| !each.is_zero()), "an agent carried nothing");
        }
        Ok(Figures { name: self.name, per_second: f64::from(number) / took.as_secs_f64(), each })
    }
}

impl Figures {
    fn line(&self) -> String {
        let rate = format!("{:<8} {:>8.0} connections per second", self.name, self.per_second);
        let Some([client, server]) = self.each else { return rate };
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        format!(
            "{rate}, {:>6.0} µs of the client's agent and {:>6.0} µs of the server's for each",
            micros(client),
            micros(server)
        )
    }

    fn both(&self) -> Option<f64> {
        self.each.map(|each| each.iter().sum::<Duration>().as_secs_f64())
    }
}

/// Each result with its ratio to the one before.
fn compare(all: &[Figures]) {
    let of = |name: &str| all.iter().find(|figures| figures.name == name);
    println!("\nnew connections, ratios of this run:");
    if let (Some(direct), Some(ours)) = (of("direct"), of("isthmus")) {
        println!("  isthmus: {:.3} of the direct rate", ours.per_second / direct.per_second);
    }
    if let (Some(ours), Some(theirs)) = (of("isthmus"), of("ztunnel")) {
        let cpu = ours.both().zip(theirs.both()).map(|(ours, theirs)| ours / theirs);
        println!(
            "  isthmus: {:.2} times ztunnel's rate, {:.2} of its processor time for each",
            ours.per_second / theirs.per_second,
            cpu.unwrap_or(f64::NAN)
        );
    }
}

/// An agent on each node; killed when dropped.
struct Agents {
    children: Vec<Child>,
    _zds: Vec<ZdsPeer>,
    _runtime: tokio::runtime::Runtime,
    _dir: TempDir,
}

impl Agents {
    /// Both programs get the same configuration: a local file, a CA at the node's own address, a scripted node role.
    fn start(lab: &TwoNodes, program: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let dir = tempfile::tempdir()?;
        let ca = Arc::new(Ca::new("bench")?);
        let (mut children, mut zds) = (Vec::new(), Vec::new());
        std::fs::write(dir.path().join("token"), "a token")?;
        for (at, (pod, name)) in [(&lab.client, "client"), (&lab.server, "server")].into_iter().enumerate() {
            let root = authority(&lab.nodes[at], &ca)?;
            std::fs::write(dir.path().join("root.pem"), root)?;
            let mut node = runtime.block_on(async { ZdsServer::bind(&lab.socket(at)) })?;
            children.push(agent(lab, at, program, dir.path())?);
            rules::apply_pod(&pod.netns, &PodRules { dns_capture: false, ..PodRules::default() })?;
            let info = ZdsPod { uid: name, name, namespace: "ns", service_account: name };
            let enrolled = runtime.block_on(async {
                let peer = node.accept().await?;
                ensure!(peer.add(&info, pod.netns.fd()).await?.is_none(), "the pod was refused");
                ensure!(peer.snapshot_sent().await?.is_none(), "the end of the snapshot was refused");
                Ok(peer)
            });
            let log = || std::fs::read_to_string(dir.path().join(format!("log{at}"))).unwrap_or_default();
            zds.push(enrolled.with_context(log)?);
        }
        Ok(Self { children, _zds: zds, _runtime: runtime, _dir: dir })
    }

    /// Processor time so far, the client's agent first.
    fn spent(&self) -> Result<[Duration; 2]> {
        let [client, server] = self.children.as_slice() else { return Err(anyhow!("two agents")) };
        Ok([spent(client.id())?, spent(server.id())?])
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        for child in &mut self.children {
            // Fails when it has exited already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn agent(lab: &TwoNodes, at: usize, program: &Path, dir: &Path) -> Result<Child> {
    let log = std::fs::File::create(dir.join(format!("log{at}")))?;
    let mut command = Command::new(program);
    command.args(["proxy", "ztunnel"]).env_clear().current_dir(dir);
    command.envs([
        ("LOCAL_XDS", lab.local("").as_str()),
        ("XDS_ADDRESS", ""),
        ("CA_ADDRESS", &format!("https://127.0.0.1:{CA_PORT}")),
        ("NETWORK", "net1"),
        ("CLUSTER_ID", "c1"),
        ("NODE_NAME", &format!("n{at}")),
        ("POD_NAME", "ztunnel-abcde"),
        ("POD_NAMESPACE", "istio-system"),
        ("INSTANCE_IP", "127.0.0.1"),
        ("RUST_LOG", "info"),
    ]);
    command.env("CA_ROOT_CA", dir.join("root.pem")).env("AUTH_TOKEN", dir.join("token"));
    command.env("INPOD_UDS", lab.socket(at));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(lab.nodes[at].netns.run_thread(|| command.spawn())??)
}

/// A CA on a node's loopback, for as long as this process lives; its root.
fn authority(node: &Host, ca: &Arc<Ca>) -> Result<String> {
    let (tell, told) = mpsc::channel();
    let (netns, ca): (Arc<Netns>, _) = (Arc::clone(&node.netns), Arc::clone(ca));
    let serve = move || {
        in_ns(&netns, || async {
            let istiod = Istiod::start_at((Ipv4Addr::LOCALHOST, CA_PORT).into(), &ca).await?;
            let _ = tell.send(istiod.root_pem().to_owned());
            std::future::pending::<Result<()>>().await
        })
    };
    std::thread::Builder::new().name("ca".to_owned()).spawn(serve)?;
    told.recv_timeout(PATIENCE).context("there is no CA")
}

/// Processor time of all threads of a process.
fn spent(pid: u32) -> Result<Duration> {
    let mut nanos = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        nanos += text.split_ascii_whitespace().next().context("schedstat")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// New connections, by several threads in the client's namespace.
fn connections(client: &Host, server: SocketAddr, number: u32) -> Result<()> {
    let one = |server| -> io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])
    };
    let part = || client.netns.run_thread(|| (0..number / CLIENTS).try_for_each(|_| one(server)));
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(part)).collect();
        parts
            .into_iter()
            .try_for_each(|part| Ok(part.join().map_err(|_| anyhow!("a client panicked"))???))
    })
}

/// A server of one byte.
fn serve(host: &Host) -> Result<SocketAddr> {
    let address = SocketAddr::new(host.v4.into(), PORT);
    let listener = host.netns.run(|| TcpListener::bind(address))?.context("listening")?;
    for _ in 0..SERVERS {
        let listener = listener.try_clone()?;
        std::thread::Builder::new().name("server".to_owned()).spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut byte = [0];
                let answered = stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte));
                // The client closes first and reports errors.
                let _ = answered.and_then(|()| stream.read(&mut byte));
            }
        })?;
    }
    Ok(address)
}
