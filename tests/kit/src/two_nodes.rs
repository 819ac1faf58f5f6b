//! Two nodes with a real agent each, run as ztunnel would be: a scripted node role on the ZDS socket, the mesh from a
//! local YAML file, the fake CA. The packet rules of a pod come from the caller: they belong to the node role, which this
//! crate must not depend on.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use isthmus_rt::task::Tasks;
use isthmus_sys::netns::Netns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::binaries;
use crate::lab::{self, Host, Lan};
use crate::process;
use crate::zds::{ZdsPeer, ZdsPod, ZdsServer};

/// The service in front of the server's port 8080.
pub const VIP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)), 80);

/// Two nodes with one pod each, and a host outside the mesh, all on one wire.
pub struct TwoNodes {
    /// The wire; more hosts can be put on it.
    pub lan: Lan,
    /// Where the agents run.
    pub nodes: [Host; 2],
    /// The pod of the first node.
    pub client: Host,
    /// The pod of the second node.
    pub server: Host,
    /// A host that is not in the mesh.
    pub outsider: Host,
    /// Servers of the test.
    pub tasks: Tasks,
    /// Further variables of the agents' environment.
    pub environment: Vec<(String, String)>,
    dir: TempDir,
}

impl TwoNodes {
    /// The hosts; no agent runs yet.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new() -> Result<Self> {
        let lan = Lan::new()?;
        let (nodes, client, server) = ([lan.host()?, lan.host()?], lan.host()?, lan.host()?);
        let outsider = lan.host()?;
        Ok(Self {
            lan,
            nodes,
            client,
            server,
            outsider,
            tasks: Tasks::new("two nodes"),
            environment: Vec::new(),
            dir: tempfile::tempdir()?,
        })
    }

    /// The local file: both pods, the service at [`VIP`] in front of the server's, and what a test adds.
    #[must_use]
    pub fn local(&self, more: &str) -> String {
        let pod = |name: &str, ip: IpAddr, node: &str, services: &str| {
            format!(
                "- {{uid: c1//Pod/ns/{name}, name: {name}, namespace: ns, serviceAccount: {name}, network: net1, \
                 clusterId: c1, workloadIps: [{ip}], protocol: HBONE, node: {node}, services: {services}}}\n"
            )
        };
        format!(
            "workloads:\n{}{}services:\n- {{name: echo, namespace: ns, hostname: echo.ns.svc.cluster.local, \
             vips: [net1/{}], ports: {{{}: 8080}}}}\n{more}",
            pod("client", self.client.v4.into(), "n0", "{}"),
            pod("server", self.server.v4.into(), "n1", "{ns/echo.ns.svc.cluster.local: {80: 8080}}"),
            VIP.ip(),
            VIP.port(),
        )
    }

    /// The ZDS socket of a node.
    #[must_use]
    pub fn socket(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("zds{at}.sock"))
    }

    /// Starts the agent of a node.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn agent(&self, at: usize, local: &str) -> Result<Agent> {
        let mut command = Command::new(binaries::path("isthmus"));
        let socket = self.socket(at);
        command.args(["proxy", "ztunnel"]).env_clear().envs([
            ("FAKE_CA", "true"),
            ("LOCAL_XDS", local),
            ("NETWORK", "net1"),
            ("NODE_NAME", &format!("n{at}")),
            ("INPOD_UDS", socket.to_str().context("path")?),
            ("RUST_LOG", "info"),
            ("ZTUNNEL_WORKER_THREADS", process::threads(at)),
        ]);
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Agent::new(self.nodes[at].netns.run_thread(|| command.spawn())??)
    }

    /// An agent that serves one pod; `rules` programs the pod's namespace.
    ///
    /// # Errors
    /// When the agent does not start or refuses the pod, or `rules` fails.
    pub async fn serve(
        &self,
        at: usize,
        pod: &Host,
        name: &str,
        local: &str,
        rules: impl FnOnce(&Netns) -> Result<()>,
    ) -> Result<(Agent, ZdsPeer)> {
        let mut zds = ZdsServer::bind(&self.socket(at))?;
        let agent = self.agent(at, local)?;
        let peer = zds.accept().await?;
        rules(&pod.netns)?;
        let info = ZdsPod { uid: name, name, namespace: "ns", service_account: name };
        let refused = peer.add(&info, pod.netns.fd()).await?;
        ensure!(refused.is_none(), "add: {refused:?}");
        ensure!(peer.snapshot_sent().await?.is_none(), "snapshot_sent");
        Ok((agent, peer))
    }

    /// Sends bytes from a host to an address, and returns the answer.
    ///
    /// # Errors
    /// When the connection is refused, breaks or takes too long.
    pub async fn exchange(&self, from: &Host, to: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
        let stream = from.sockets().connect(to, None, Duration::from_secs(10)).await?;
        lab::exchange(stream, bytes).await
    }
}

/// A running agent; killed when dropped.
pub struct Agent {
    child: Child,
    output: Option<(Reader, Reader)>,
}

/// Collects what the agent writes, so that it never blocks on a full pipe.
type Reader = JoinHandle<std::io::Result<Vec<u8>>>;

/// How an agent ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit status.
    pub status: ExitStatus,
    /// Standard output: the log.
    pub log: String,
    /// Standard error.
    pub error: String,
}

impl Agent {
    fn new(mut child: Child) -> Result<Self> {
        let (out, err) = (child.stdout.take().context("stdout")?, child.stderr.take().context("stderr")?);
        Ok(Self { child, output: Some((reader(out)?, reader(err)?)) })
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the agent exits by itself.
    ///
    /// # Errors
    /// When its output cannot be read.
    pub fn ended(mut self) -> Result<Ended> {
        let text = |reader: Reader| -> Result<String> {
            let bytes = reader.join().map_err(|_| anyhow!("the reader panicked"))??;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let (out, err) = self.output.take().context("output")?;
        let (log, error) = (text(out)?, text(err)?);
        Ok(Ended { status: self.child.wait()?, log, error })
    }

    /// Ends an agent as Kubernetes would.
    ///
    /// # Errors
    /// When its output cannot be read.
    pub fn terminate(self) -> Result<Ended> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        self.ended()
    }

    /// Ends an agent without connections as Kubernetes would, and returns its log.
    ///
    /// # Errors
    /// When it does not exit with success, or only at its deadline.
    pub fn stop(self) -> Result<String> {
        let Ended { status, log, error } = self.terminate()?;
        ensure!(status.success(), "{status}: {log}{error}");
        ensure!(!log.contains("still open at the deadline"), "an idle agent did not drain:\n{log}");
        Ok(log)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Fails when it has exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn reader(mut from: impl Read + Send + 'static) -> Result<Reader> {
    let read = move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    Ok(std::thread::Builder::new().name("agent output".to_owned()).spawn(read)?)
}
