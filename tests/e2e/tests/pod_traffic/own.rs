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

use super::SOON;

pub(crate) fn the_agents_own_hbone_port_serves_only_metrics_and_readiness() -> Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
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
        let agent = Process::start(&node.netns, "isthmus", &["proxy", "ztunnel"], &env, "")?;
        agent.line(&["agent started"]).await?;
        let certs = Manager::new(Arc::new(FakeSigner::new()), manager::Config::default(), &lab.tasks);
        let id =
            |account: &str| -> Result<SpiffeId> { Ok(format!("spiffe://cluster.local/{account}").parse()?) };
        let to = SocketAddr::new(node.v4.into(), 15008);
        let ask = async |who: &str, port: u16| {
            let certificate = certs.certificate(&id(who)?).await?;
            let tcp = lab.outsider.sockets().connect(to, None, SOON).await?;
            let expected = [id("ns/istio-system/sa/ztunnel")?];
            let tls = tls::connect(certificate.client_tls(&expected).config(), tcp).await?;
            client::connect(tls, &SocketAddr::new(node.v4.into(), port).to_string(), &[]).await
        };
        let (prometheus, stranger) = ("ns/monitoring/sa/prometheus", "ns/monitoring/sa/stranger");
        for (port, path, expected) in
            [(15020, "/metrics", "istio_build"), (15021, "/healthz/ready", "not ready, pending")]
        {
            let (status, peer) = ask(prometheus, port).await?;
            ensure!(status == 200, "{port}: {status}");
            let answer = client::get(client::bytes(peer, &lab.tasks), path).await?;
            ensure!(answer.contains(expected), "{port}: {answer}");
        }
        for port in [15000, 15001, 15006, 15008, 15053, 22] {
            ensure!(ask(prometheus, port).await?.0 == 503, "{port}");
        }
        ensure!(ask(stranger, 15020).await?.0 == 401, "policy holds here too");
        agent.stop().await?;
        Ok(())
    })
}
