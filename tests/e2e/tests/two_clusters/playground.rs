//! A running playground for one test, and handles to its pods and wires.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use isthmus_kit::binaries;
use isthmus_kit::pki::Ca;
use isthmus_sys::netns::Netns;
use isthmus_sys::socket::Sockets;
use serde::Deserialize;
use tempfile::TempDir;

/// The URL of every request, and the beginning of every answer.
pub(crate) const URL: &str = "http://helloworld.sample:5000/hello";
pub(crate) const TEXT: &str = "Hello version: ";
/// The application's port.
pub(crate) const PORT: u16 = 5000;
/// HBONE.
pub(crate) const HBONE: u16 = 15008;
/// The nodes of east; a test's own pods are on each of them.
pub(crate) const EAST: [&str; 2] = ["east-1", "east-2"];

/// A running playground; ended when dropped.
pub(crate) struct Playground {
    dir: TempDir,
    /// Its first process.
    pid: i32,
    _turn: File,
}

/// A pod, or for a pod of the host network its node.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Pod {
    pub(crate) cluster: String,
    pub(crate) name: String,
    pub(crate) node: String,
    /// 0.0.0.0 for a pod of the host network.
    #[serde(deserialize_with = "address")]
    pub(crate) ip: Ipv4Addr,
    /// One of its processes, as the playground numbers them.
    pid: Option<u32>,
}

/// The result of one request.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) status: Option<u16>,
    pub(crate) body: String,
    #[expect(dead_code, reason = "shown when a test fails")]
    error: Option<String>,
}

/// A playground is many processes, so only one runs at a time, for as long as the file is held.
pub(crate) fn turn() -> Result<File> {
    let file = File::open(std::env::current_exe()?)?;
    file.lock()?;
    Ok(file)
}

/// A subcommand of the playground, or a whole run, with a folder of its own and the programs that the tests use.
pub(crate) fn playground_command(dir: &Path, subcommand: Option<&str>) -> Result<Command> {
    let program = binaries::path("playground");
    let mut command = Command::new(&program);
    command.env("ISTHMUS_BIN_DIR", program.parent().context("folder")?);
    command.args(subcommand).arg("--dir").arg(dir).stdin(Stdio::null());
    Ok(command)
}

/// Standard output of a program that must succeed.
pub(crate) fn succeeded(what: &str, output: &Output) -> Result<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success(), "{what}: {}\n{out}{err}", output.status);
    Ok(out)
}

/// A pod that does nothing, pinned to a node.
pub(crate) fn idle_pod(name: &str, namespace: &str, account: &str, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n  \
         nodeName: {node}\n  serviceAccountName: {account}\n  terminationGracePeriodSeconds: 0\n  \
         containers:\n  - name: main\n    image: docker.io/curlimages/curl:8.16.0\n"
    )
}

/// An un-enrolled pod `plain-<node>` and an enrolled one `asker-<node>` on each node of east.
pub(crate) fn pods_on_each_node() -> String {
    let pods = EAST.iter().flat_map(|node| {
        [
            idle_pod(&format!("plain-{node}"), "outside", "client", node),
            idle_pod(&format!("asker-{node}"), "sample", "sleep", node),
        ]
    });
    pods.collect::<Vec<_>>().join("---\n")
}

impl Playground {
    /// Builds the playground of the repository's manifests and of more: a path below the manifests, and the text.
    pub(crate) fn up(more: &[(&str, String)]) -> Result<Self> {
        Self::up_with(more, &[])
    }

    /// The same with more arguments of `playground up`.
    pub(crate) fn up_with(more: &[(&str, String)], args: &[String]) -> Result<Self> {
        let turn = turn()?;
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("w"))?;
        let manifests = dir.path().join("manifests");
        for part in ["common", "east", "west"] {
            copy(&repository().join(part), &manifests.join(part))?;
        }
        for (path, text) in more {
            fs::write(manifests.join(path), text)?;
        }
        let mut up = playground_command(&dir.path().join("w"), Some("up"))?;
        succeeded("playground up", &up.args(args).arg("--manifests").arg(manifests).output()?)?;
        let facts = fs::read(dir.path().join("w/world.json"))?;
        let facts: serde_json::Value = serde_json::from_slice(&facts)?;
        let pid = i32::try_from(facts["pid"].as_i64().context("pid")?)?;
        Ok(Self { dir, pid, _turn: turn })
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("w")
    }

    pub(crate) fn command(&self, subcommand: &str) -> Result<Command> {
        playground_command(&self.folder(), Some(subcommand))
    }

    /// Applies a manifest of the repository to a cluster.
    pub(crate) fn apply(&self, cluster: &str, manifest: &str) -> Result<()> {
        let mut apply = self.command("apply")?;
        let output =
            apply.arg("-f").arg(repository().join(manifest)).args(["--cluster", cluster]).output()?;
        succeeded("playground apply", &output).map(drop)
    }

    /// All pods at present.
    pub(crate) fn pods(&self) -> Result<Vec<Pod>> {
        let status = self.command("status")?.arg("--json").output()?;
        let status: serde_json::Value = serde_json::from_str(&succeeded("playground status", &status)?)?;
        Ok(Vec::deserialize(&status["pods"])?)
    }

    /// The pod whose `<cluster>/<name>` has this prefix.
    pub(crate) fn pod(&self, wanted: &str) -> Result<Pod> {
        self.pod_where(wanted, |_| true)
    }

    /// The pod of a DaemonSet on a node.
    pub(crate) fn pod_on(&self, wanted: &str, node: &str) -> Result<Pod> {
        self.pod_where(wanted, |pod| pod.node == node)
    }

    fn pod_where(&self, wanted: &str, fits: impl Fn(&Pod) -> bool) -> Result<Pod> {
        let pods = self.pods()?.into_iter();
        let mut pods =
            pods.filter(|pod| format!("{}/{}", pod.cluster, pod.name).starts_with(wanted) && fits(pod));
        pods.next().with_context(|| format!("no pod {wanted}"))
    }

    /// The PID of a pod's process in this process' namespace.
    pub(crate) fn pid(&self, pod: &Pod) -> Result<i32> {
        let inner = pod.pid.with_context(|| format!("pod {} does not run", pod.name))?.to_string();
        let playground = namespace(self.pid, "pid")?;
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            let innermost = numbers.split_whitespace().last();
            if innermost == Some(inner.as_str()) && namespace(pid, "pid").is_ok_and(|own| own == playground) {
                return Ok(pid);
            }
        }
        bail!("process {inner} of pod {} is gone", pod.name)
    }

    /// The network namespace of a pod.
    pub(crate) fn netns(&self, pod: &Pod) -> Result<Arc<Netns>> {
        open(self.pid(pod)?)
    }

    /// The network namespace of a node.
    pub(crate) fn node(&self, node: &str) -> Result<Arc<Netns>> {
        let (cluster, _) = node.split_once('-').context("node")?;
        self.netns(&self.pod_on(&format!("{cluster}/istio-cni-node"), node)?)
    }

    /// The network namespace of the bridge that joins the clusters. A node's port is named like the node, the one of
    /// a cluster's gateway `<cluster>-lb`.
    pub(crate) fn underlay(&self) -> Result<Arc<Netns>> {
        open(self.pid)
    }

    /// The node's end of a pod's veth pair: the interface of its route to the pod.
    pub(crate) fn veth(&self, pod: &Pod) -> Result<String> {
        let node = self.pid(&self.pod_on(&format!("{}/istio-cni-node", pod.cluster), &pod.node)?)?;
        let routes = fs::read_to_string(format!("/proc/{node}/net/route"))?;
        let wanted = format!("{:08X}", u32::from_ne_bytes(pod.ip.octets()));
        let mut routes = routes.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let route = routes.find(|route| route.get(1) == Some(&wanted.as_str()));
        Ok((*route.and_then(|route| route.into_iter().next()).context("no route to the pod")?).to_owned())
    }

    /// Sockets inside a pod.
    pub(crate) fn sockets(&self, pod: &Pod) -> Result<Sockets> {
        Ok(Sockets::in_netns(self.netns(pod)?))
    }

    /// Requests from inside a pod, one after the other.
    pub(crate) fn request(&self, pod: &Pod, url: &str, number: usize) -> Result<Vec<Outcome>> {
        let mut exec = self.command("exec")?;
        exec.args([&format!("{}/{}", pod.cluster, pod.name), "--"]).arg(binaries::path("playground"));
        let output = exec.args(["request", url, "--json", "--number", &number.to_string()]).output()?;
        let lines = String::from_utf8_lossy(&output.stdout);
        let outcomes: Vec<Outcome> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(outcomes.len() == number, "{} of {number} requests were made: {said}", outcomes.len());
        Ok(outcomes)
    }

    /// A cluster's CA with its key, for leaves that only a compromised CA would sign.
    pub(crate) fn ca(&self, cluster: &str) -> Result<Ca> {
        let read = |name: &str| fs::read_to_string(self.folder().join("pki").join(cluster).join(name));
        Ca::intermediate(&read("ca-cert.pem")?, &read("ca-key.pem")?, &read("root-cert.pem")?)
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        // The rest ends with the test's PID namespace.
        if let Ok(mut down) = self.command("down") {
            let _ = down.output();
        }
    }
}

impl Pod {
    /// Its address.
    pub(crate) fn ip(&self) -> IpAddr {
        self.ip.into()
    }
}

impl Outcome {
    /// Whether this version answered.
    pub(crate) fn is(&self, version: &str) -> bool {
        self.status == Some(200) && self.body.starts_with(&format!("{TEXT}{version},"))
    }
}

/// The number of answers by a version.
pub(crate) fn by(version: &str, outcomes: &[Outcome]) -> usize {
    outcomes.iter().filter(|outcome| outcome.is(version)).count()
}

/// The repository's manifests.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/manifests")
}

fn address<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Ipv4Addr, D::Error> {
    match String::deserialize(from)?.as_str() {
        "" => Ok(Ipv4Addr::UNSPECIFIED),
        text => text.parse().map_err(serde::de::Error::custom),
    }
}

fn open(pid: i32) -> Result<Arc<Netns>> {
    Ok(Arc::new(Netns::open(Path::new(&format!("/proc/{pid}/ns/net")))?))
}

fn namespace(pid: i32, kind: &str) -> Result<u64> {
    Ok(fs::metadata(format!("/proc/{pid}/ns/{kind}"))?.ino())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("no manifests in {}", from.display()))? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
