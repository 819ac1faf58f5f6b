//! The node role between a scripted API server, a CNI plugin and an agent, with a kernel that only records.

use std::collections::{BTreeMap, HashMap};
use std::io::IoSliceMut;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use isthmus_kit::wait::eventually;
use isthmus_model::PodUid;
use isthmus_node::capture::{CaptureError, Gate, NetnsChanges, Sandbox, Stray, Uncapturable};
use isthmus_node::kernel::{KernelError, NetnsRefusal, ProbeTarget};
use isthmus_node::pod::CaptureConfig;
use isthmus_node::{ApiServer, Config, Dependencies, Kernel, Metrics, NetnsQuery};
use isthmus_proto::enroll::Rules;
use isthmus_proto::zds::{Ack, WorkloadRequest, WorkloadResponse, workload_request, workload_response};
use isthmus_rt::drain::{self, Drain};
use isthmus_rt::ready::Readiness;
use isthmus_rt::task::Tasks;
use isthmus_sys::netns::Netns;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio_seqpacket::UnixSeqpacket;
use tokio_seqpacket::ancillary::OwnedAncillaryMessage;

use crate::api::{Api, namespace};

/// Bound of every wait.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// A kernel that records. All pods share the test's own network namespace.
#[derive(Default)]
pub(crate) struct FakeKernel {
    pub(crate) rules: Mutex<usize>,
    pub(crate) applied: Mutex<usize>,
    pub(crate) host: Mutex<usize>,
    pub(crate) probes: Mutex<BTreeMap<IpAddr, PodUid>>,
    pub(crate) failing: Mutex<bool>,
}

impl Kernel for FakeKernel {
    fn forget_netns(&self, _: &PodUid) {}
    fn open_netns(&self, path: &Path, _: &PodUid) -> Result<Netns, KernelError> {
        if path == Path::new("/var/run/netns/good") {
            return Ok(Netns::current().unwrap());
        }
        let reason = NetnsRefusal::Host;
        Err(KernelError::NetnsRefused { path: path.to_owned(), reason })
    }
    fn find_netns(&self, queries: &[NetnsQuery]) -> Result<HashMap<PodUid, Netns>, KernelError> {
        Ok(queries.iter().map(|query| (query.pod.uid.clone(), Netns::current().unwrap())).collect())
    }
    fn apply_pod(&self, _: &Netns, _: &CaptureConfig, gate: Gate) -> Result<(), KernelError> {
        if *self.failing.lock().unwrap() {
            return Err(KernelError::Failed { operation: "pod rules", cause: "on purpose".into() });
        }
        *self.applied.lock().unwrap() += 1;
        // Closed rules come first; opening them writes the same again without the closing chain.
        *self.rules.lock().unwrap() += usize::from(gate == Gate::Closed);
        Ok(())
    }
    fn capture_running(&self, _: &Netns, _: &CaptureConfig) -> Result<usize, KernelError> {
        Ok(0)
    }
    fn release_pod(&self, netns: &Netns) -> Result<(), KernelError> {
        self.remove_pod(netns)
    }
    fn carries(&self, _: &Netns) -> Result<bool, KernelError> {
        Ok(false)
    }
    fn remove_pod(&self, _: &Netns) -> Result<(), KernelError> {
        *self.rules.lock().unwrap() = 0;
        Ok(())
    }
    fn prove(&self, _: &Sandbox) -> Result<(), CaptureError> {
        Ok(())
    }
    fn compare(&self, _: &Sandbox, _: Gate) -> Result<(), CaptureError> {
        Ok(())
    }
    fn set_interfaces(&self, _: &Netns, _: Gate) -> Result<(), KernelError> {
        Ok(())
    }
    fn changes(&self, _: &Netns) -> Result<Box<dyn NetnsChanges>, KernelError> {
        Err(KernelError::Failed { operation: "notifications", cause: "none".into() })
    }
    fn strays(&self, _: &[(PodUid, Netns)]) -> Result<Vec<Stray>, KernelError> {
        Ok(Vec::new())
    }
    fn apply_host(&self) -> Result<(), KernelError> {
        *self.host.lock().unwrap() += 1;
        Ok(())
    }
    fn probe_targets(&self) -> Result<Vec<ProbeTarget>, KernelError> {
        let probes = self.probes.lock().unwrap();
        Ok(probes.iter().map(|(ip, uid)| ProbeTarget { ip: *ip, uid: uid.clone() }).collect())
    }
    fn add_probe_target(&self, target: &ProbeTarget) -> Result<(), KernelError> {
        self.probes.lock().unwrap().insert(target.ip, target.uid.clone());
        Ok(())
    }
    fn remove_probe_target(&self, target: &ProbeTarget) -> Result<(), KernelError> {
        let mut probes = self.probes.lock().unwrap();
        if probes.get(&target.ip) == Some(&target.uid) {
            probes.remove(&target.ip);
        }
        Ok(())
    }
}

pub(crate) struct NodeHarness {
    pub(crate) api: Api,
    pub(crate) kernel: Arc<FakeKernel>,
    pub(crate) readiness: Readiness,
    pub(crate) drain: Drain,
    _tasks: Tasks,
    dir: tempfile::TempDir,
}

impl NodeHarness {
    /// Starts the node role of `node-1` with these pods in the unlabelled namespace `sample`.
    pub(crate) async fn start(pods: &[serde_json::Value]) -> Self {
        let tasks = Tasks::new("test");
        let (api, url) = Api::start(&tasks).await;
        api.put("namespaces", namespace("sample", None));
        pods.iter().for_each(|pod| api.put("pods", pod.clone()));
        let dir = tempfile::tempdir().unwrap();
        let (kernel, readiness) = (Arc::new(FakeKernel::default()), Readiness::default());
        let (drain, watch) = drain::channel();
        let dependencies = Dependencies {
            kernel: Arc::clone(&kernel) as Arc<dyn Kernel>,
            client: isthmus_node::connect(&kubeconfig(dir.path(), &url)).await.unwrap(),
            metrics: Metrics::register(&isthmus_rt::metrics::Registry::default()),
        };
        let (config, ready) = (config(dir.path()), readiness.block("node"));
        tasks.spawn("node", async move {
            isthmus_node::run(config, dependencies, ready, watch).await.unwrap();
        });
        let node = Self { api, kernel, readiness, drain, _tasks: tasks, dir };
        node.until("it is ready", |node| node.readiness.pending().is_empty()).await;
        node
    }

    /// Polls a condition that no event announces.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        eventually(|| condition(self), || what.to_owned()).await;
    }

    /// Sends a plugin event and returns status and body.
    pub(crate) async fn cmdadd(&self, pod: &str, netns: &str) -> (u16, String) {
        let event = serde_json::json!({
            "Netns": netns, "PodName": pod, "PodNamespace": "sample",
            "IPs": [{"Interface": 0, "Address": {"IP": "10.11.0.9", "Mask": "////AA=="}, "Gateway": ""}],
        })
        .to_string();
        let mut stream = UnixStream::connect(self.dir.path().join("run/pluginevent.sock")).await.unwrap();
        let head = format!("POST /cmdadd HTTP/1.1\r\nHost: unix\r\nContent-Length: {}\r\n\r\n", event.len());
        stream.write_all(format!("{head}{event}").as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(LIMIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    /// Connects an agent.
    pub(crate) async fn agent(&self) -> Agent {
        let socket = UnixSeqpacket::connect(self.dir.path().join("zds/ztunnel.sock")).await.unwrap();
        socket.send(&[0x08, 0x01]).await.unwrap();
        Agent(socket)
    }
}

fn config(dir: &Path) -> Config {
    Config {
        node_name: "node-1".into(),
        run_dir: dir.join("run"),
        zds_socket: dir.join("zds/ztunnel.sock"),
        netns_dir: "/var/run/netns".into(),
        proc_dir: "/proc".into(),
        host_netns: "/proc/self/ns/net".into(),
        dns_capture: true,
        ipv6: true,
        rules: Rules::default(),
        probes: isthmus_node::config::ProbeAddresses::default(),
        kubelet: isthmus_node::config::KubeletUid::Fixed(0),
        uncapturable: Uncapturable::Refuse,
        own_stack_classes: vec!["kata*".to_owned()],
        reconcile_on_start: true,
    }
}

fn kubeconfig(dir: &Path, url: &str) -> ApiServer {
    let path = dir.join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- {{name: c, cluster: {{server: \"{url}\"}}}}\n\
         users:\n- {{name: u, user: {{token: t}}}}\ncontexts:\n- {{name: c, context: {{cluster: c, user: u}}}}\n"
    );
    std::fs::write(&path, text).unwrap();
    ApiServer::Kubeconfig(path)
}

/// An agent on the ZDS socket.
pub(crate) struct Agent(UnixSeqpacket);

impl Agent {
    /// Receives a request and acks it, with this error unless it is empty. Returns the request as text.
    pub(crate) async fn next(&self, error: &str) -> String {
        let (mut buffer, mut space) = ([0; 1024], [0; 64]);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let received = self.0.recv_vectored_with_ancillary(&mut slices, &mut space);
        let (info, ancillary) = tokio::time::timeout(LIMIT, received).await.expect("a ZDS request").unwrap();
        let descriptors: usize = ancillary
            .into_messages()
            .map(|message| match message {
                OwnedAncillaryMessage::FileDescriptors(fds) => fds.len(),
                _ => 0,
            })
            .sum();
        let request = WorkloadRequest::decode(&buffer[..info.bytes_read()]).unwrap();
        let answer = WorkloadResponse {
            payload: Some(workload_response::Payload::Ack(Ack { error: error.to_owned() })),
        };
        self.0.send(&answer.encode_to_vec()).await.unwrap();
        match request.payload.unwrap() {
            workload_request::Payload::Add(add) => {
                let info = add.workload_info.unwrap();
                assert_eq!(descriptors, 1);
                format!("add {} {}/{}/{}", add.uid, info.namespace, info.name, info.service_account)
            }
            workload_request::Payload::Keep(keep) => format!("keep {}", keep.uid),
            workload_request::Payload::Del(del) => format!("del {}", del.uid),
            workload_request::Payload::SnapshotSent(_) => "end".to_owned(),
        }
    }

    /// Expects requests in this order and acks each.
    pub(crate) async fn expect(&self, requests: &[&str]) {
        for want in requests {
            assert_eq!(self.next("").await, *want);
        }
    }
}
