//! Two agents around two pods: those of this workspace or, with `ISTHMUS_UPSTREAM_ZTUNNEL`, two ztunnels, with the same
//! configuration. It must not know what the pods say to each other.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
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

use crate::double;
use crate::proc::{self, Memory, Usage};

const CA_PORT: u16 = 15012;
/// Longest wait for the CA.
const PATIENCE: Duration = Duration::from_secs(30);
/// The variable with the path of a ztunnel.
const UPSTREAM: &str = "ISTHMUS_UPSTREAM_ZTUNNEL";

/// What connections pass through.
#[derive(Debug)]
pub struct Subject {
    /// `direct`, `isthmus` or `ztunnel`.
    pub name: &'static str,
    program: Option<PathBuf>,
}

/// How the agents reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Road {
    /// Directly: one network.
    Hbone,
    /// Through our gateway: two networks.
    DoubleHbone,
}

/// The wire without agents, our agents, and ztunnels when there is one; says so when there is none.
///
/// # Errors
/// When the variable names no file.
pub fn subjects() -> Result<Vec<Subject>> {
    let mut subjects = vec![
        Subject { name: "direct", program: None },
        Subject { name: "isthmus", program: Some(binaries::path("isthmus")) },
    ];
    match std::env::var_os(UPSTREAM).map(PathBuf::from) {
        Some(program) if program.is_file() => {
            subjects.push(Subject { name: "ztunnel", program: Some(program) });
        }
        Some(program) => bail!("{UPSTREAM}: {} is not a file", program.display()),
        None => println!("{UPSTREAM} names no ztunnel: there is nothing to compare with"),
    }
    Ok(subjects)
}

impl Subject {
    /// Starts the agents, if there are any, and enrols both pods.
    ///
    /// # Errors
    /// When an agent does not start or refuses its pod; its log is in the error.
    pub fn start(&self, lab: &TwoNodes, road: Road) -> Result<Option<Agents>> {
        self.program.as_ref().map(|program| Agents::start(lab, program, road)).transpose()
    }
}

/// Prepares the pods for many short connections.
///
/// # Errors
/// When a setting cannot be written.
pub fn prepare(lab: &TwoNodes) -> Result<()> {
    for host in [&lab.client, &lab.server] {
        // With closes in TIME_WAIT the client would soon run out of ports.
        sysctl::write(&host.netns, "net/ipv4/ip_local_port_range", "16384 60999")?;
        sysctl::write(&host.netns, "net/ipv4/tcp_tw_reuse", "1")?;
    }
    Ok(())
}

/// An agent on each node, with a CA and a scripted node role for each, and perhaps a gateway; killed when dropped.
pub struct Agents {
    children: Vec<Child>,
    _zds: Vec<ZdsPeer>,
    _runtime: tokio::runtime::Runtime,
    _dir: TempDir,
}

impl Agents {
    /// Both programs get the same configuration: a local file, a CA at the node's own address, a scripted node role.
    fn start(lab: &TwoNodes, program: &Path, road: Road) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let dir = tempfile::tempdir()?;
        let ca = Arc::new(Ca::new("bench")?);
        let (mut children, mut zds) = (Vec::new(), Vec::new());
        std::fs::write(dir.path().join("token"), "system:serviceaccount:istio-system:eastwest")?;
        let gateway = match road {
            Road::Hbone => None,
            Road::DoubleHbone => {
                std::fs::write(dir.path().join("root.pem"), authority(&lab.outsider, &ca)?)?;
                Some(runtime.block_on(double::gateway(lab, dir.path(), &ca_settings(dir.path())))?)
            }
        };
        for (at, (pod, name)) in [(&lab.client, "client"), (&lab.server, "server")].into_iter().enumerate() {
            let root = authority(&lab.nodes[at], &ca)?;
            std::fs::write(dir.path().join("root.pem"), root)?;
            let mut node = runtime.block_on(async { ZdsServer::bind(&lab.socket(at)) })?;
            children.push(agent(lab, at, program, (road, dir.path()))?);
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
        children.extend(gateway);
        Ok(Self { children, _zds: zds, _runtime: runtime, _dir: dir })
    }

    /// The processes: the client's agent, the server's and the gateway, if there is one.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }

    /// What they have used so far, in the order of [`Self::pids`].
    ///
    /// # Errors
    /// When one of them has ended.
    pub fn usage(&self) -> Result<Vec<Usage>> {
        self.pids().into_iter().map(proc::usage).collect()
    }

    /// Their memory, in the order of [`Self::pids`].
    ///
    /// # Errors
    /// When one of them has ended.
    pub fn memory(&self) -> Result<Vec<Memory>> {
        self.pids().into_iter().map(proc::memory).collect()
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

/// Settings of the CA, a process' own loopback.
fn ca_settings(dir: &Path) -> [(&'static str, String); 3] {
    let path = |name: &str| dir.join(name).display().to_string();
    [
        ("CA_ADDRESS", format!("https://127.0.0.1:{CA_PORT}")),
        ("CA_ROOT_CA", path("root.pem")),
        ("AUTH_TOKEN", path("token")),
    ]
}

fn agent(lab: &TwoNodes, at: usize, program: &Path, (road, dir): (Road, &Path)) -> Result<Child> {
    let (local, network) = match road {
        Road::Hbone => (lab.local(""), "net1"),
        Road::DoubleHbone => (double::local(lab, at), double::network(at)),
    };
    let log = std::fs::File::create(dir.join(format!("log{at}")))?;
    let mut command = Command::new(program);
    command.args(["proxy", "ztunnel"]).env_clear().current_dir(dir);
    command.envs([
        ("LOCAL_XDS", local.as_str()),
        ("XDS_ADDRESS", ""),
        ("NETWORK", network),
        ("CLUSTER_ID", if network == "net1" { "c1" } else { "c2" }),
        ("NODE_NAME", &format!("n{at}")),
        ("POD_NAME", "ztunnel-abcde"),
        ("POD_NAMESPACE", "istio-system"),
        ("INSTANCE_IP", "127.0.0.1"),
        ("RUST_LOG", "info"),
    ]);
    command.envs(ca_settings(dir));
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
