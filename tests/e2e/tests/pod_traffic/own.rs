//! The agent as a member of the mesh: HBONE in its own namespace.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Result, ensure};
use isthmus_identity::fake::FakeSigner;
use isthmus_identity::{CertSource as _, Manager, manager};
use isthmus_kit::hbone::client;
use isthmus_kit::lab;
use isthmus_kit::process::Process;
use isthmus_kit::tls;
use isthmus_kit::two_nodes::TwoNodes;
use isthmus_model::SpiffeId;
use isthmus_sys::netns::Netns;
use tokio::io::DuplexStream;

use super::SOON;

/// An agent without pods, whose policy admits Prometheus to its own HBONE port.
pub(crate) struct OwnPort {
    lab: TwoNodes,
    agent: Process,
    certs: Manager,
}

impl OwnPort {
    /// Starts it, with more settings.
    pub(crate) async fn new(more: &[(&str, &str)]) -> Result<Self> {
        let lab = TwoNodes::new()?;
        let node = &lab.nodes[0];
        let local = format!(
            "workloads:\n- {{uid: c1//Pod/istio-system/ztunnel-1, name: ztunnel-1, namespace: istio-system, \
             serviceAccount: ztunnel, network: net1, clusterId: c1, workloadIps: [{}], protocol: HBONE, node: n0, \
             services: {{}}}}\npolicies:\n- name: only-prometheus\n  namespace: istio-system\n  scope: Namespace\n  \
             action: Allow\n  rules: [[[{{principals: [!Exact cluster.local/ns/monitoring/sa/prometheus]}}]]]\n",
            node.v4
        );
        let socket = lab.socket(0).display().to_string();
        let env = [
            ("FAKE_CA", "true"),
            ("LOCAL_XDS", local.as_str()),
            ("NETWORK", "net1"),
            ("NODE_NAME", "n0"),
            ("INPOD_UDS", &socket),
            ("POD_NAME", "ztunnel-1"),
            ("POD_NAMESPACE", "istio-system"),
            ("SERVICE_ACCOUNT", "ztunnel"),
        ];
        let env = [&env[..], more].concat();
        let agent = Process::start(&node.netns, "isthmus", &["proxy", "ztunnel"], &env, "")?;
        agent.line(&["agent started"]).await?;
        let certs = Manager::new(Arc::new(FakeSigner::new()), manager::Config::default(), &lab.tasks);
        Ok(Self { lab, agent, certs })
    }

    /// Where it runs.
    #[allow(dead_code, reason = "for one of the suites that have it")]
    pub(crate) fn netns(&self) -> &Netns {
        &self.lab.nodes[0].netns
    }

    /// The status of a CONNECT to one of its ports, and the stream.
    pub(crate) async fn ask(&self, who: &str, port: u16) -> Result<(u16, DuplexStream)> {
        let node = self.lab.nodes[0].v4;
        let id =
            |account: &str| -> Result<SpiffeId> { Ok(format!("spiffe://cluster.local/{account}").parse()?) };
        let certificate = self.certs.certificate(&id(who)?).await?;
        let to = SocketAddr::new(node.into(), 15008);
        let tcp = self.lab.outsider.sockets().connect(to, None, SOON).await?;
        let expected = [id("ns/istio-system/sa/ztunnel")?];
        let tls = tls::connect(certificate.client_tls(&expected).config(), tcp).await?;
        let authority = SocketAddr::new(node.into(), port).to_string();
        let (status, peer) = client::connect(tls, &authority, &[]).await?;
        Ok((status, client::bytes(peer, &self.lab.tasks)))
    }

    /// An HTTP request through such a stream.
    pub(crate) async fn get(&self, who: &str, port: u16, path: &str) -> Result<(u16, String)> {
        let (status, stream) = self.ask(who, port).await?;
        Ok((status, client::get(stream, path).await?))
    }

    /// Ends it.
    pub(crate) async fn stop(self) -> Result<()> {
        self.agent.stop().await?;
        Ok(())
    }
}

#[allow(dead_code, reason = "a test of one of the suites that have this")]
pub(crate) fn the_agents_own_hbone_port_serves_only_metrics_and_readiness() -> Result<()> {
    lab::block_on(async {
        let own = OwnPort::new(&[]).await?;
        let (prometheus, stranger) = ("ns/monitoring/sa/prometheus", "ns/monitoring/sa/stranger");
        for (port, path, expected) in
            [(15020, "/metrics", "istio_build"), (15021, "/healthz/ready", "not ready, pending")]
        {
            let (status, answer) = own.get(prometheus, port, path).await?;
            ensure!(status == 200, "{port}: {status}");
            ensure!(answer.contains(expected), "{port}: {answer}");
        }
        for port in [15000, 15001, 15006, 15008, 15053, 22] {
            ensure!(own.ask(prometheus, port).await?.0 == 503, "{port}");
        }
        ensure!(own.ask(stranger, 15020).await?.0 == 401, "policy holds here too");
        own.stop().await
    })
}
