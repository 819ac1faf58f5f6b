//! One node as Kubernetes would run it: the node role in the node's namespace, an agent in a pod of its own, pods with
//! named namespaces, and the CNI plugin started as a container runtime starts it. Only the API server is scripted.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::kube::{self, Api};
use isthmus_kit::lab::{self, Host, Lan};
use isthmus_kit::probe;
use isthmus_kit::process::{Ended, Process};
use isthmus_kit::wait::until;
use isthmus_rt::task::Tasks;
use isthmus_sys::netns::Netns;
use isthmus_sys::nft::Ruleset;
use isthmus_sys::socket::{Sockets, Transparent};
use isthmus_sys::{nft, route};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;

/// The mesh's label.
pub(crate) const MODE: &str = "istio.io/dataplane-mode";
/// Where every pod's application listens.
pub(crate) const APP: u16 = 8080;
const NODE: &str = "node-1";
const API: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 6443);

/// The node.
pub(crate) struct NodeLab {
    lan: Lan,
    pub(crate) api: Api,
    /// Where the agent runs.
    agent: Host,
    /// A host that is not in the mesh.
    pub(crate) outsider: Host,
    tasks: Tasks,
    dir: TempDir,
}

/// A pod's sandbox, with an application that sends the caller's address.
pub(crate) struct Pod {
    pub(crate) host: Host,
    /// The name of its network namespace.
    pub(crate) netns: PathBuf,
}

/// Everything in a namespace that captures traffic.
#[derive(Debug, PartialEq)]
pub(crate) struct Captured {
    pub(crate) rules: Ruleset,
    routing: [Vec<(u32, u32, u32, u32)>; 2],
}

impl NodeLab {
    /// A node before any process of ours or the API server is started.
    pub(crate) fn new() -> Result<Self> {
        let lan = Lan::new()?;
        let (agent, outsider) = (lan.host()?, lan.host()?);
        let (dir, tasks) = (tempfile::tempdir()?, Tasks::new("lab"));
        for folder in ["run", "netns", "zds", "proc"] {
            std::fs::create_dir(dir.path().join(folder))?;
        }
        let config = kube::kubeconfig(&format!("http://{API}"));
        for path in ["kubeconfig", "run/istio-cni-kubeconfig"] {
            std::fs::write(dir.path().join(path), &config)?;
        }
        answer_with_caller(&outsider.sockets(), outsider.v4, &tasks)?;
        Ok(Self { lan, api: Api::default(), agent, outsider, tasks, dir })
    }

    /// Starts the API server, with the unlabelled namespace `sample`.
    pub(crate) fn serve_api(&self) -> Result<()> {
        self.api.put("namespaces", kube::namespace("sample", &[]));
        let (listener, _) = self.lan.sockets().listen(API, Transparent::Never)?;
        self.api.serve(listener, &self.tasks);
        Ok(())
    }

    /// A sandbox and its pod in `sample`, whose address the kubelet has not reported yet.
    pub(crate) fn sandbox(&self, name: &str) -> Result<Pod> {
        let host = self.lan.host()?;
        answer_with_caller(&host.sockets(), host.v4, &self.tasks)?;
        let netns = self.path(&format!("netns/cni-{name}"));
        bind(&host.netns, &netns)?;
        let mut object = kube::pod("sample", name, NODE, None);
        object["metadata"]["uid"] = json!(uid(name));
        object["spec"]["containers"] =
            json!([{"name": "app", "readinessProbe": {"tcpSocket": {"port": APP}}}]);
        self.api.put("pods", object);
        self.process(name, &host.netns)?;
        Ok(Pod { host, netns })
    }

    /// A process of a pod in a namespace, as the host's `/proc` has it. The lab's own processes are in no cgroup that
    /// it could make.
    pub(crate) fn process(&self, name: &str, netns: &Netns) -> Result<PathBuf> {
        let pid = 100 + std::fs::read_dir(self.path("proc"))?.count();
        let folder = self.path(&format!("proc/{pid}"));
        std::fs::create_dir_all(folder.join("ns"))?;
        std::fs::write(folder.join("cgroup"), format!("0::/kubepods/pod{}/{:064x}\n", uid(name), pid))?;
        let before = (4..22).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
        std::fs::write(folder.join("stat"), format!("{pid} (app) S {before} {pid} 0\n"))?;
        bind(netns, &folder.join("ns/net"))?;
        Ok(folder)
    }

    /// A running pod of `sample`.
    pub(crate) fn running(&self, name: &str) -> Result<Pod> {
        let pod = self.sandbox(name)?;
        self.reported(name, &pod);
        Ok(pod)
    }

    /// The kubelet reports a pod's address.
    pub(crate) fn reported(&self, name: &str, pod: &Pod) {
        let ip = pod.host.v4.to_string();
        self.api.change("pods", &format!("sample/{name}"), |object| {
            object["status"] = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]});
        });
    }

    /// Enrols a pod or removes it from the mesh, by its own label.
    pub(crate) fn mode(&self, name: &str, mode: Option<&str>) {
        self.api.label("pods", &format!("sample/{name}"), MODE, mode);
    }

    /// Starts the node role.
    pub(crate) fn start_node(&self) -> Result<Process> {
        let path = |name: &str| self.path(name).display().to_string();
        let (run, zds, netns, kubeconfig, proc) =
            (path("run"), path("zds/z.sock"), path("netns"), path("kubeconfig"), path("proc"));
        let env = [
            ("NODE_NAME", NODE),
            ("CNI_AGENT_RUN_DIR", &run),
            ("ZTUNNEL_UDS_ADDRESS", &zds),
            ("CNI_NETNS_DIR", &netns),
            ("HOST_PROC", &proc),
            ("KUBECONFIG", &kubeconfig),
            ("AMBIENT_DNS_CAPTURE", "true"),
            ("AMBIENT_IPV6", "true"),
        ];
        Process::start(&self.lan.node, "isthmus", &["node"], &env, "")
    }

    /// Starts the node role and waits until it is ready.
    pub(crate) async fn node(&self) -> Result<Process> {
        let node = self.start_node()?;
        node.line(&["node role ready"]).await?;
        Ok(node)
    }

    /// Starts an agent that knows these pods, and policies in the form of the local file.
    pub(crate) fn agent(&self, pods: &[(&str, &Pod)], policies: &str) -> Result<Process> {
        let workload = |(name, pod): &(&str, &Pod)| {
            format!(
                "- {{uid: c1//Pod/sample/{name}, name: {name}, namespace: sample, serviceAccount: {name}, \
                 network: net1, workloadIps: [{}], protocol: HBONE, node: {NODE}, services: {{}}}}\n",
                pod.host.v4
            )
        };
        let local = format!("workloads:\n{}{policies}", pods.iter().map(workload).collect::<String>());
        let zds = self.path("zds/z.sock").display().to_string();
        let env = [
            ("FAKE_CA", "true"),
            ("LOCAL_XDS", local.as_str()),
            ("NETWORK", "net1"),
            ("NODE_NAME", NODE),
            ("INPOD_UDS", &zds),
        ];
        Process::start(&self.agent.netns, "isthmus", &["proxy", "ztunnel"], &env, "")
    }

    /// Runs the plugin's ADD for a sandbox; `name` is the Kubernetes pod's, if it is for one.
    pub(crate) async fn add(&self, name: Option<(&str, &str)>, netns: &Path, ip: Ipv4Addr) -> Result<Ended> {
        self.add_with(name, netns, ip, &json!({})).await
    }

    /// The same with more in the plugin's configuration.
    pub(crate) async fn add_with(
        &self,
        name: Option<(&str, &str)>,
        netns: &Path,
        ip: Ipv4Addr,
        more: &Value,
    ) -> Result<Ended> {
        let mut conf = json!({
            "cniVersion": "1.1.0", "name": "net", "type": "isthmus-cni",
            "cni_agent_run_dir": self.path("run"), "exclude_namespaces": ["kube-system"],
            "prevResult": previous(ip),
        });
        for (key, value) in more.as_object().context("no object")? {
            conf[key] = value.clone();
        }
        let args = name.map_or_else(String::new, |(namespace, name)| {
            format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID={}",
                uid(name)
            )
        });
        let netns = netns.display().to_string();
        let env = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "sandbox"),
            ("CNI_NETNS", &netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
            ("CNI_ARGS", &args),
            // As runtimes do that keep namespaces where the plugin would take them for its own.
            ("CNI_NETNS_OVERRIDE", "1"),
        ];
        Process::start(&self.lan.node, "isthmus-cni", &[], &env, &conf.to_string())?.ended().await
    }

    /// ADD of a pod of `sample` that must succeed and return the earlier plugins' result.
    pub(crate) async fn added(&self, name: &str, pod: &Pod) -> Result<()> {
        passed(&self.add(Some(("sample", name)), &pod.netns, pod.host.v4).await?, pod.host.v4)
    }

    /// ADD of a pod of `sample` that must fail; returns the reason that the runtime receives.
    pub(crate) async fn refused(&self, name: &str, netns: &Path, ip: Ipv4Addr) -> Result<String> {
        let ran = self.add(Some(("sample", name)), netns, ip).await?;
        ensure!(ran.status.code() == Some(1), "{ran:?}");
        let error: Value =
            serde_json::from_str(&ran.stream(false).concat()).with_context(|| format!("{ran:?}"))?;
        ensure!(error["code"] == 11 && error["cniVersion"] == "1.1.0", "{error}");
        Ok(error["details"].as_str().with_context(|| format!("no details in {error}"))?.to_owned())
    }

    /// A path in the node's own folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The node's own namespace.
    pub(crate) fn netns(&self) -> &Netns {
        &self.lan.node
    }

    /// Sockets of the node itself, as the kubelet uses.
    pub(crate) fn kubelet(&self) -> Sockets {
        self.lan.sockets()
    }

    /// One more host on the node's network.
    pub(crate) fn host(&self) -> Result<Host> {
        self.lan.host()
    }

    /// Whether a pod counts as captured by the node role's metric; `None` when it has no series.
    pub(crate) async fn counts_as_captured(&self, name: &str) -> Result<Option<bool>> {
        let answer = probe::get(&self.lan.node, "127.0.0.1:15014", "/metrics").await?;
        let series = format!("isthmus_pod_captured{{namespace=\"sample\",pod=\"{name}\"}} ");
        Ok(answer.body.lines().find_map(|line| line.strip_prefix(&series)).map(|value| value == "1"))
    }

    /// When a pod was last proved to be captured, by the node role's status.
    pub(crate) async fn proved_at(&self, name: &str) -> Result<Option<String>> {
        let answer = probe::get(&self.lan.node, "127.0.0.1:15014", "/status").await?;
        let status: Value = serde_json::from_str(&answer.body)?;
        let pods = status["pods"].as_array().context("no pods")?;
        let pod = pods.iter().find(|pod| pod["name"] == name && pod["captured"] == true);
        Ok(pod.and_then(|pod| pod["proved_at"].as_str()).map(str::to_owned))
    }

    /// The config dump of the agent.
    pub(crate) async fn dump(&self) -> Result<Value> {
        let answer = probe::get(&self.agent.netns, "127.0.0.1:15000", "/config_dump").await?;
        Ok(serde_json::from_str(&answer.body)?)
    }
}

impl Pod {
    /// Where its application listens.
    pub(crate) fn app(&self) -> SocketAddr {
        SocketAddr::new(self.host.v4.into(), APP)
    }

    /// Its redirection state.
    pub(crate) fn captured(&self) -> Result<Captured> {
        let netns = &self.host.netns;
        let routing = [route::fwmark_rules(netns, false)?, route::fwmark_rules(netns, true)?];
        Ok(Captured { rules: nft::dump(netns)?, routing })
    }

    /// The ports below 32768 that TCP listens on in its namespace, but for its application's.
    pub(crate) fn listening(&self) -> Result<BTreeSet<u16>> {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        let tables =
            self.host.netns.run_thread(|| Ok::<_, std::io::Error>([read("tcp")?, read("tcp6")?]))??;
        let port = |line: &str| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let (_, port) = fields.get(1)?.rsplit_once(':')?;
            (fields.get(3) == Some(&"0A")).then(|| u16::from_str_radix(port, 16).ok()).flatten()
        };
        Ok(tables
            .iter()
            .flat_map(|table| table.lines())
            .filter_map(port)
            .filter(|port| *port != APP)
            .collect())
    }

    /// Waits until the agent listens in this pod, or no longer does.
    pub(crate) async fn served(&self, want: bool) -> Result<()> {
        let ports = if want { BTreeSet::from([15001, 15006, 15008, 15053]) } else { BTreeSet::new() };
        until("the agent's ports", async || self.listening().is_ok_and(|open| open == ports)).await
    }
}

impl Captured {
    /// Whether there is any redirection.
    pub(crate) fn is_empty(&self) -> bool {
        self.rules.tables.is_empty() && self.routing.iter().all(Vec::is_empty)
    }
}

/// The UID of a pod, in the shape that the kubelet's cgroups need.
pub(crate) fn uid(name: &str) -> String {
    let hex: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("00000000-0000-4000-8000-{hex:0>12}")
}

/// The greeting of an application to a caller with this address.
pub(crate) async fn call(from: &Sockets, to: SocketAddr) -> Result<String> {
    let stream = from.connect(to, None, Duration::from_secs(10)).await?;
    Ok(String::from_utf8(lab::exchange(stream, b"").await?)?)
}

/// Checks that ADD succeeded and returned the earlier plugins' result.
pub(crate) fn passed(ran: &Ended, ip: Ipv4Addr) -> Result<()> {
    ensure!(ran.status.success(), "{ran:?}");
    let result: Value =
        serde_json::from_str(&ran.stream(false).concat()).with_context(|| format!("{ran:?}"))?;
    ensure!(result == previous(ip), "{result}");
    Ok(())
}

/// Gives a namespace a name, as container runtimes do.
pub(crate) fn bind(netns: &Netns, path: &Path) -> Result<()> {
    std::fs::write(path, "")?;
    let open = format!("/proc/self/fd/{}", netns.fd().as_raw_fd());
    mount(Some(open.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot name a namespace {}", path.display()))
}

fn previous(ip: Ipv4Addr) -> Value {
    json!({
        "cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "/sandbox"}],
        "ips": [{"address": format!("{ip}/24"), "gateway": "10.77.1.1", "interface": 0}],
    })
}

/// Starts an application that sends the caller's address, then echoes.
fn answer_with_caller(sockets: &Sockets, ip: Ipv4Addr, tasks: &Tasks) -> Result<()> {
    let (listener, _) = sockets.listen(SocketAddr::new(ip.into(), APP), Transparent::Never)?;
    let connections = Tasks::new("application");
    tasks.spawn("application", async move {
        while let Ok((mut stream, caller)) = listener.accept().await {
            connections.spawn("call", async move {
                let (mut read, mut write) = stream.split();
                let _ = write.write_all(format!("{}\n", caller.ip()).as_bytes()).await;
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    Ok(())
}
