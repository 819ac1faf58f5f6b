//! The agent by itself, as ztunnel would be run on two nodes: a scripted node role on the ZDS socket, the local YAML file,
//! the fake CA. What a client sends reaches the server, and the wire between them carries TLS on 15008 only.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use isthmus_kit::lab::{self, Host, Lan};
use isthmus_kit::zds::{ZdsPeer, ZdsPod, ZdsServer};
use isthmus_kit::{binaries, probe};
use isthmus_node::rules::{self, PodRules};
use isthmus_rt::task::Tasks;
use isthmus_sys::capture::Capture;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const SECRET: &[u8] = b"the answer of the application, in plain words";
const VIP: &str = "10.96.0.1:80";

fn main() -> std::process::ExitCode {
    lab::main(&lab::tests![
        two_agents_carry_a_pods_traffic_as_hbone,
        bad_local_configuration_is_named_and_ends_the_process,
        a_policy_lets_only_its_principal_in
    ])
}

/// Two nodes with an agent each, a pod on each, and a host that is not in the mesh.
struct World {
    _lan: Lan,
    nodes: [Host; 2],
    client: Host,
    server: Host,
    outsider: Host,
    dir: TempDir,
    tasks: Tasks,
}

impl World {
    fn new() -> anyhow::Result<Self> {
        let lan = Lan::new()?;
        let (nodes, client, server) = ([lan.host()?, lan.host()?], lan.host()?, lan.host()?);
        let outsider = lan.host()?;
        Ok(Self {
            _lan: lan,
            nodes,
            client,
            server,
            outsider,
            dir: tempfile::tempdir()?,
            tasks: Tasks::new("world"),
        })
    }

    /// The local file: both pods, a service in front of the server's, and what a test adds.
    fn local(&self, more: &str) -> String {
        let pod = |name: &str, ip: IpAddr, node: &str, services: &str| {
            format!(
                "- {{uid: c1//Pod/ns/{name}, name: {name}, namespace: ns, serviceAccount: {name}, network: net1, \
                 clusterId: c1, workloadIps: [{ip}], protocol: HBONE, node: {node}, services: {services}}}\n"
            )
        };
        format!(
            "workloads:\n{}{}services:\n- {{name: echo, namespace: ns, hostname: echo.ns.svc.cluster.local, \
             vips: [net1/10.96.0.1], ports: {{80: 8080}}}}\n{more}",
            pod("client", self.client.v4.into(), "n0", "{}"),
            pod("server", self.server.v4.into(), "n1", "{ns/echo.ns.svc.cluster.local: {80: 8080}}"),
        )
    }

    fn agent(&self, at: usize, local: &str) -> anyhow::Result<Child> {
        let mut command = Command::new(binaries::path("isthmus"));
        let socket = self.socket(at);
        command.args(["proxy", "ztunnel"]).env_clear().envs([
            ("FAKE_CA", "true"),
            ("LOCAL_XDS", local),
            ("NETWORK", "net1"),
            ("NODE_NAME", &format!("n{at}")),
            ("INPOD_UDS", socket.to_str().context("path")?),
            ("RUST_LOG", "info"),
        ]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(self.nodes[at].netns.run_thread(|| command.spawn())??)
    }

    fn socket(&self, at: usize) -> std::path::PathBuf {
        self.dir.path().join(format!("zds{at}.sock"))
    }

    /// An agent that serves one pod, rules and all.
    async fn serve(
        &self,
        at: usize,
        pod: &Host,
        name: &str,
        local: &str,
    ) -> anyhow::Result<(Child, ZdsPeer)> {
        let mut zds = ZdsServer::bind(&self.socket(at))?;
        let child = self.agent(at, local)?;
        let agent = zds.accept().await?;
        rules::apply_pod(&pod.netns, &PodRules { dns_capture: false, ..PodRules::default() })?;
        let pod_info = ZdsPod { uid: name, name, namespace: "ns", service_account: name };
        let refused = agent.add(&pod_info, pod.netns.fd()).await?;
        ensure!(refused.is_none(), "add: {refused:?}");
        ensure!(agent.snapshot_sent().await?.is_none(), "snapshot_sent");
        Ok((child, agent))
    }

    async fn exchange(&self, from: &Host, to: SocketAddr) -> anyhow::Result<Vec<u8>> {
        let stream = from.sockets().connect(to, None, Duration::from_secs(10)).await?;
        lab::exchange(stream, SECRET).await
    }
}

fn two_agents_carry_a_pods_traffic_as_hbone() -> anyhow::Result<()> {
    let world = World::new()?;
    lab::block_on(async {
        let app = SocketAddr::new(world.server.v4.into(), 8080);
        lab::echo(&world.server.sockets(), app, &world.tasks)?;
        let wire = Capture::open(&world.server.netns, "eth0")?;
        ensure!(world.exchange(&world.outsider, app).await? == SECRET, "the application does not answer");
        ensure!(probe::contains(&wire.drain(), SECRET), "the control failed: plaintext was not seen");

        let local = world.local("");
        let (client_agent, _zds0) = world.serve(0, &world.client, "client", &local).await?;
        let (server_agent, _zds1) = world.serve(1, &world.server, "server", &local).await?;
        let _ = wire.drain();
        for to in [VIP.parse()?, app] {
            ensure!(world.exchange(&world.client, to).await? == SECRET, "{to} did not answer");
        }
        let frames = wire.drain();
        ensure!(!probe::contains(&frames, SECRET), "the payload was seen in plain text");
        ensure!(probe::tls_bytes(&frames, 15008) >= 4 * SECRET.len(), "no TLS records on 15008");
        ensure!(probe::syns(&frames, 8080) == 0, "a connection to the application's port left the client");

        what_the_admin_endpoints_say(&world).await?;
        for child in [client_agent, server_agent] {
            let log = stop(child)?;
            ensure!(log.contains("connection complete"), "no access log line in\n{log}");
            ensure!(
                log.contains("src.identity=\"spiffe://cluster.local/ns/ns/sa/client\""),
                "no identity in\n{log}"
            );
        }
        Ok(())
    })
}

async fn what_the_admin_endpoints_say(world: &World) -> anyhow::Result<()> {
    let ready = probe::get(&world.nodes[1].netns, "127.0.0.1:15021", "/healthz/ready").await?;
    ensure!(ready.status == 200 && ready.body == "ready\n", "{ready:?}");
    let metrics = probe::get(&world.nodes[1].netns, "127.0.0.1:15020", "/metrics").await?;
    let opened = metrics.body.lines().find(|line| {
        line.starts_with("istio_tcp_connections_opened_total{reporter=\"destination\"")
            && line.contains("source_principal=\"spiffe://cluster.local/ns/ns/sa/client\"")
            && line.contains("connection_security_policy=\"mutual_tls\"")
    });
    ensure!(opened.is_some_and(|line| line.ends_with(" 2")), "{}", metrics.body);
    let dump = probe::get(&world.nodes[0].netns, "127.0.0.1:15000", "/config_dump").await?;
    let dump: serde_json::Value = serde_json::from_str(&dump.body)?;
    ensure!(dump["workloads"].as_array().map(Vec::len) == Some(2), "{dump}");
    ensure!(dump["workloadState"]["client"]["state"] == "Up", "{dump}");
    ensure!(dump["certificates"][0]["state"] == "Available", "{dump}");
    Ok(())
}

fn a_policy_lets_only_its_principal_in() -> anyhow::Result<()> {
    let world = World::new()?;
    lab::block_on(async {
        let app = SocketAddr::new(world.server.v4.into(), 8080);
        lab::echo(&world.server.sockets(), app, &world.tasks)?;
        for (principal, allowed) in
            [("cluster.local/ns/ns/sa/client", true), ("cluster.local/ns/ns/sa/other", false)]
        {
            let policy = format!(
                "policies:\n- name: only\n  namespace: ns\n  scope: Namespace\n  action: Allow\n  \
                 rules: [[[{{principals: [!Exact {principal}]}}]]]\n"
            );
            let local = world.local(&policy);
            let (client_agent, _zds0) = world.serve(0, &world.client, "client", &local).await?;
            let (server_agent, _zds1) = world.serve(1, &world.server, "server", &local).await?;
            let answer = world.exchange(&world.client, VIP.parse()?).await;
            ensure!(
                answer.is_ok_and(|bytes| bytes == SECRET) == allowed,
                "{principal}: allowed is not {allowed}"
            );
            let plain = world.exchange(&world.outsider, app).await;
            ensure!(!plain.is_ok_and(|bytes| bytes == SECRET), "plaintext has no identity and must not pass");
            stop(client_agent)?;
            let log = stop(server_agent)?;
            ensure!(log.contains("allow policies exist") != allowed, "{log}");
            for at in 0..2 {
                std::fs::remove_file(world.socket(at))?;
            }
        }
        Ok(())
    })
}

fn bad_local_configuration_is_named_and_ends_the_process() -> anyhow::Result<()> {
    let world = World::new()?;
    let child = world.agent(0, "workloads:\n- {workloadIp: [10.0.0.1], namespace: ns, services: {}}\n")?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(64), "{output:?}");
    ensure!(said.contains("workloadIp") && said.contains("LOCAL_XDS"), "{said}");
    ensure!(!Path::new(&world.socket(0)).exists(), "something was touched");
    Ok(())
}

/// Ends an agent as Kubernetes would; returns what it logged.
fn stop(mut child: Child) -> anyhow::Result<String> {
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
    let output = {
        let out = child.stdout.take().context("stdout")?;
        std::io::read_to_string(out)?
    };
    let status = child.wait()?;
    ensure!(status.success(), "{status}: {output}");
    ensure!(!output.contains("still open at the deadline"), "an idle agent did not drain:\n{output}");
    Ok(output)
}
