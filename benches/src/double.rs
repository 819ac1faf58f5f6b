//! The same two pods in two networks, and our gateway of the server's: what each agent's file says, and the gateway's
//! process. It must not know what is measured.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use isthmus_kit::kube::{self, Api};
use isthmus_kit::two_nodes::{TwoNodes, VIP};
use isthmus_kit::{binaries, probe, wait};
use isthmus_sys::socket::Transparent;

/// Ports of the servers, which the service has as well.
pub const PORTS: [u16; 3] = [8080, 8081, 8082];
const HOSTNAME: &str = "echo.ns.svc.cluster.local";
const SERVER_IDENTITY: &str = "spiffe://cluster.local/ns/ns/sa/server";
const API: u16 = 6443;
/// Longest wait for the gateway.
const PATIENCE: Duration = Duration::from_secs(30);

/// The network of a node.
#[must_use]
pub fn network(at: usize) -> &'static str {
    if at == 0 { "net1" } else { "net2" }
}

/// The local file of a node's agent, or with 1 the gateway's.
#[must_use]
pub fn local(lab: &TwoNodes, at: usize) -> String {
    let vip = VIP.ip();
    let service = format!(
        "services:\n- {{name: echo, namespace: ns, hostname: {HOSTNAME}, vips: [{}/{vip}], ports: {}, \
         subjectAltNames: [\"{SERVER_IDENTITY}\"]}}\n",
        network(at),
        ports()
    );
    let member = format!("{{ns/{HOSTNAME}: {}}}", ports());
    let workloads = if at == 0 {
        let (client, gateway) = (lab.client.v4, lab.outsider.v4);
        format!(
            "- {{uid: c1//Pod/ns/client, name: client, namespace: ns, serviceAccount: client, trustDomain: cluster.local, network: net1, \
             clusterId: c1, workloadIps: [{client}], protocol: HBONE, node: n0, services: {{}}}}\n\
             - {{uid: far, name: far, namespace: ns, network: net2, clusterId: c2, workloadIps: [], protocol: HBONE, \
             services: {member}, networkGateway: {{destination: net2/{gateway}, hboneMtlsPort: 15008}}}}\n\
             - {{uid: gateway, name: gateway, namespace: istio-system, serviceAccount: eastwest, trustDomain: cluster.local, network: net2, \
             workloadIps: [{gateway}], services: {{}}}}\n"
        )
    } else {
        format!(
            "- {{uid: c2//Pod/ns/server, name: server, namespace: ns, serviceAccount: server, trustDomain: cluster.local, network: net2, \
             clusterId: c2, workloadIps: [{}], protocol: HBONE, node: n1, services: {member}}}\n",
            lab.server.v4
        )
    };
    format!("workloads:\n{workloads}{service}")
}

/// Each port of the service leads to itself.
fn ports() -> String {
    let mut all = String::from("{");
    for port in PORTS {
        // Writing to a string does not fail.
        let _ = write!(all, "{}{port}: {port}", if all.len() > 1 { ", " } else { "" });
    }
    all + "}"
}

/// The gateway of the server's network on the host outside the mesh, ready; `ca` are its settings of the CA.
///
/// # Errors
/// When it does not start or does not become ready.
pub async fn gateway(lab: &TwoNodes, dir: &Path, ca: &[(&str, String)]) -> Result<Child> {
    let api = Api::default();
    api.put("namespaces", kube::namespace("ns", &[]));
    api.put("services", kube::service("ns", "echo", &[("istio.io/global", "true")]));
    let address: SocketAddr = (lab.lan.v4, API).into();
    let (listener, _) = lab.lan.sockets().listen(address, Transparent::Never)?;
    api.serve(listener, &lab.tasks);
    let kubeconfig = dir.join("kubeconfig");
    std::fs::write(&kubeconfig, kube::kubeconfig(&format!("http://{address}")))?;
    let log = std::fs::File::create(dir.join("gateway.log"))?;
    let mut command = Command::new(binaries::path("isthmus"));
    command.arg("gateway").env_clear().envs(ca.iter().map(|(key, value)| (*key, value)));
    command.env("LOCAL_XDS", local(lab, 1)).env("KUBECONFIG", &kubeconfig);
    command.envs([
        ("XDS_ADDRESS", ""),
        ("NETWORK", "net2"),
        ("POD_NAME", "eastwest-1"),
        ("POD_NAMESPACE", "istio-system"),
        ("SERVICE_ACCOUNT", "eastwest"),
        ("INSTANCE_IP", "127.0.0.1"),
        ("RUST_LOG", "info"),
    ]);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = lab.outsider.netns.run_thread(|| command.spawn())??;
    let netns = &lab.outsider.netns;
    let ready = async || {
        let answer = probe::get(netns, "127.0.0.1:15021", "/healthz/ready").await;
        Ok::<_, anyhow::Error>(answer.ok().filter(|answer| answer.status == 200).map(|_| ()))
    };
    let ready = wait::within(PATIENCE, async || ready().await.transpose()).await;
    ready.with_context(|| {
        let log = std::fs::read_to_string(dir.join("gateway.log")).unwrap_or_default();
        format!("the gateway does not become ready: {log}")
    })??;
    Ok(child)
}
