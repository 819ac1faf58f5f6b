//! A playground in which some agents are ztunnels, with a client, a stranger and a server in each cluster.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isthmus_rt::task::Tasks;
use isthmus_sys::socket::{Sockets, Transparent, reset_on_close};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};

use super::playground::{Playground, Pod};
use super::script::PORTS;

/// Both clusters.
pub(crate) const CLUSTERS: [&str; 2] = ["east", "west"];
/// Port of the server that echoes.
pub(crate) const ECHO: u16 = 7000;
/// Port of the server that answers after the client's FIN.
const LATE: u16 = 7001;
/// Port of the server that reports how its client ended.
const WATCH: u16 = 7002;
/// Port of the server that resets after the first bytes.
const RESET: u16 = 7003;
/// The answer of [`LATE`], after everything that it received.
const LAST: &[u8] = b" and no more";
const PATIENCE: Duration = Duration::from_secs(10);

/// The playground, and the servers of its `echo` pods.
pub(crate) struct Mesh {
    pub(crate) playground: Playground,
    /// How clients of [`WATCH`] ended.
    ends: Mutex<mpsc::UnboundedReceiver<std::io::Result<()>>>,
    _servers: Tasks,
}

/// A route through the mesh: from the client on the first node of a cluster to the server on the second of another one
/// or of the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TestRoute {
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
}

impl TestRoute {
    /// All four.
    pub(crate) const ALL: [Self; 4] = [
        Self { from: "east", to: "east" },
        Self { from: "west", to: "west" },
        Self { from: "east", to: "west" },
        Self { from: "west", to: "east" },
    ];

    /// Through the gateways.
    pub(crate) fn is_double(self) -> bool {
        self.from != self.to
    }

    /// The service.
    pub(crate) fn host(self) -> String {
        format!("echo-{}.sample.svc.cluster.local", self.to)
    }

    fn vip(self, port: u16) -> SocketAddr {
        (vip(self.from, self.to), port).into()
    }
}

/// The path of ztunnel's program.
pub(crate) fn program() -> Result<PathBuf> {
    let path = std::env::var_os("ISTHMUS_UPSTREAM_ZTUNNEL").map(PathBuf::from);
    let path = path.context("ISTHMUS_UPSTREAM_ZTUNNEL does not name ztunnel's program")?;
    ensure!(path.is_file(), "ISTHMUS_UPSTREAM_ZTUNNEL: {} is not a file", path.display());
    Ok(path)
}

impl Mesh {
    /// A playground in which ztunnel is the agent of these clusters or nodes. Must be called inside a runtime.
    pub(crate) fn up(places: &[&str]) -> Result<Self> {
        let program = program()?;
        let args: Vec<_> =
            places.iter().map(|place| format!("--agent-program={place}={}", program.display())).collect();
        let files = CLUSTERS.map(|cluster| (format!("{cluster}/upstream.yaml"), manifest(cluster)));
        let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), text.clone())).collect();
        let playground = Playground::up_with(&files, &args)?;
        let servers = Tasks::new("servers");
        let (tell, told) = mpsc::unbounded_channel();
        for cluster in CLUSTERS {
            let pod = playground.pod(&format!("{cluster}/echo-{cluster}"))?;
            let sockets = playground.sockets(&pod)?;
            serve(&sockets, pod.ip, &servers, &tell)?;
        }
        Ok(Self { playground, ends: Mutex::new(told), _servers: servers })
    }
    /// Connects a pod of the route's first cluster to a port of the service in its second.
    pub(crate) async fn connect(&self, pod: &str, way: TestRoute, port: u16) -> Result<TcpStream> {
        let pod = self.playground.pod(&format!("{}/{pod}-{}", way.from, way.from))?;
        Ok(self.playground.sockets(&pod)?.connect(way.vip(port), None, PATIENCE).await?)
    }

    /// The agent that serves the clients of a cluster: the one of its first node.
    pub(crate) fn near(&self, cluster: &str) -> Result<Pod> {
        self.playground.pod_on(&format!("{cluster}/ztunnel"), &format!("{cluster}-1"))
    }

    /// The agent that serves the server of a cluster: the one of its second node.
    pub(crate) fn far(&self, cluster: &str) -> Result<Pod> {
        self.playground.pod_on(&format!("{cluster}/ztunnel"), &format!("{cluster}-2"))
    }

    /// Half-closes and resets of connections on a route.
    pub(crate) async fn ends(&self, way: TestRoute) -> Result<()> {
        let bulk: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_be_bytes).take(5_000_000).collect();
        let back = exchange(self.connect("asker", way, ECHO).await?, &bulk).await.context("bulk")?;
        ensure!(back == bulk, "{way:?}: {} of {} bytes came back right", back.len(), bulk.len());

        let back = exchange(self.connect("asker", way, LATE).await?, b"all").await.context("half-close")?;
        ensure!(back == [b"all", LAST].concat(), "{way:?}: {}", String::from_utf8_lossy(&back));

        let mut ends = self.ends.lock().await;
        for reset in [false, true] {
            let mut stream = self.connect("asker", way, WATCH).await?;
            stream.write_all(b"x").await?;
            stream.read_exact(&mut [0]).await.context("the server does not answer")?;
            if reset {
                reset_on_close(&stream);
            }
            drop(stream);
            let end = tokio::time::timeout(PATIENCE, ends.recv()).await;
            let end = end.with_context(|| format!("{way:?}: the server was told nothing, reset: {reset}"))?;
            println!("{way:?}: reset by the client: {reset}, seen by the server: {end:?}");
            ensure!(reset || matches!(end, Some(Ok(()))), "{way:?}: {end:?}");
        }
        let mut stream = self.connect("asker", way, RESET).await?;
        stream.write_all(b"x").await?;
        let end = tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await;
        let end = end.with_context(|| format!("{way:?}: the client was not told of the reset"))?;
        println!("{way:?}: reset by the server, seen by the client: {end:?}");
        ensure!(!matches!(end, Ok(1..)), "{way:?}: {end:?}");
        Ok(())
    }
}

/// Sends bytes and a FIN, and returns the whole answer.
pub(crate) async fn exchange(stream: TcpStream, bytes: &[u8]) -> Result<Vec<u8>> {
    isthmus_kit::lab::exchange(stream, bytes).await
}

/// The address of the service of cluster `to`, in cluster `of`.
pub(crate) fn vip(of: &str, to: &str) -> Ipv4Addr {
    let second = if of == "east" { 21 } else { 22 };
    Ipv4Addr::new(172, second, 0, if to == "east" { 70 } else { 71 })
}

/// The manifests of the cluster beyond the repository's.
fn manifest(cluster: &str) -> String {
    let mut all = vec![
        "kind: ServiceAccount\nmetadata: {name: other, namespace: sample}".to_owned(),
        "kind: AuthorizationPolicy\napiVersion: security.istio.io/v1\n\
         metadata: {name: no-other, namespace: sample}\nspec:\n  action: DENY\n  rules:\n  - from:\n    \
         - source:\n        principals: [cluster.local/ns/sample/sa/other]"
            .to_owned(),
        pod(cluster, "asker", "sleep", 1),
        pod(cluster, "other", "other", 1),
        pod(cluster, "echo", "helloworld", 2),
    ];
    all.extend(CLUSTERS.map(|to| {
        let ports = [ECHO, LATE, WATCH, RESET].into_iter().chain(PORTS);
        let ports: Vec<_> = ports.map(|port| format!("{{name: tcp-{port}, port: {port}}}")).collect();
        format!(
            "kind: Service\nmetadata: {{name: echo-{to}, namespace: sample, labels: {{istio.io/global: \"true\"}}}}\n\
             spec:\n  clusterIP: {}\n  selector: {{app: echo-{to}}}\n  ports: [{}]",
            vip(cluster, to),
            ports.join(", ")
        )
    }));
    let versioned = all.into_iter().map(|text| match text.contains("apiVersion") {
        true => text,
        false => format!("apiVersion: v1\n{text}"),
    });
    versioned.collect::<Vec<_>>().join("\n---\n")
}

/// A Deployment of one pod on one node: pod, workload and application have three names.
fn pod(cluster: &str, name: &str, account: &str, node: u8) -> String {
    let labels = format!("{{app: {name}-{cluster}, version: v1}}");
    format!(
        "kind: Deployment\napiVersion: apps/v1\nmetadata: {{name: {name}-{cluster}-v1, namespace: sample}}\n\
         spec:\n  replicas: 1\n  selector: {{matchLabels: {labels}}}\n  template:\n    \
         metadata: {{labels: {labels}}}\n    spec:\n      nodeName: {cluster}-{node}\n      \
         serviceAccountName: {account}\n      terminationGracePeriodSeconds: 0\n      \
         containers:\n      - {{name: main, image: curl}}"
    )
}

/// The servers of a pod.
fn serve(
    sockets: &Sockets,
    ip: Ipv4Addr,
    tasks: &Tasks,
    tell: &mpsc::UnboundedSender<std::io::Result<()>>,
) -> Result<()> {
    isthmus_kit::lab::echo(sockets, (ip, ECHO).into(), tasks)?;
    for port in [LATE, WATCH, RESET] {
        let (listener, _) = sockets.listen((ip, port).into(), Transparent::Never)?;
        let (connections, tell) = (Tasks::new("server"), tell.clone());
        tasks.spawn("server", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let tell = tell.clone();
                connections.spawn("server connection", async move {
                    let end = answer(stream, port).await;
                    if port == WATCH {
                        // The test may have ended.
                        let _ = tell.send(end);
                    }
                });
            }
        });
    }
    Ok(())
}

async fn answer(mut stream: TcpStream, port: u16) -> std::io::Result<()> {
    let mut got = Vec::new();
    match port {
        LATE => {
            stream.read_to_end(&mut got).await?;
            stream.write_all(&[&got, LAST].concat()).await?;
            stream.shutdown().await
        }
        RESET => {
            stream.read_exact(&mut [0]).await?;
            reset_on_close(&stream);
            Ok(())
        }
        _ => {
            stream.read_exact(&mut [0]).await?;
            stream.write_all(b"y").await?;
            stream.read_to_end(&mut got).await.map(drop)
        }
    }
}
