//! Pods enter and leave the mesh: the real node role, the real plugin and the real agent over a real kernel.

mod world;

use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::Duration;

use anyhow::{Result, ensure};
use isthmus_kit::kube;
use isthmus_kit::lab;
use isthmus_kit::wait::until;
use isthmus_kit::process::{Line, text};
use isthmus_sys::socket::Transparent;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream};
use tokio::net::TcpStream;

use world::{APP, MODE, Pod, World, bind, call, passed};

/// What probes come from, as pods see them.
const PROBE: &str = "169.254.7.127\n";
/// Without an identity nobody gets in.
const STRICT: &str = "policies:\n- name: strict\n  namespace: sample\n  scope: Namespace\n  action: Deny\n  \
                      rules: [[[{notPrincipals: [!Presence []]}]]]\n";

fn main() -> std::process::ExitCode {
    lab::main_with_programs(&lab::tests![
        a_running_pod_follows_its_label_and_its_namespaces,
        an_add_while_the_node_role_is_down_fails_and_succeeds_later,
        pods_out_of_the_mesh_always_start,
        probes_reach_pods_of_the_mesh,
        a_running_pod_that_cannot_be_enrolled_is_closed_and_tried_again,
        a_namespace_that_is_no_pods_is_refused,
        pods_are_served_again_when_the_agent_is_back,
        pods_stay_as_they_are_while_the_node_role_is_away
    ])
}

/// Whether a pod is captured and served, or neither.
async fn is_in(world: &World, name: &str, pod: &Pod, want: bool) -> Result<()> {
    world.api.redirected(&format!("sample/{name}"), want.then_some("enabled")).await?;
    ensure!(pod.captured()?.is_empty() != want, "{name}: in is not {want}: {:?}", pod.captured()?);
    pod.served(want).await
}

fn a_running_pod_follows_its_label_and_its_namespaces() -> Result<()> {
    lab::block_on(async {
        let world = World::new()?;
        world.serve_api()?;
        let (a, b) = (world.running("a")?, world.running("b")?);
        // The control: as far as its namespace's label goes, this one would be in too.
        let out = world.running("out")?;
        world.mode("out", Some("none"));
        let _node = world.node().await?;
        let agent = world.agent(&[("a", &a), ("b", &b), ("out", &out)], "")?;
        ensure!(a.captured()?.is_empty() && a.listening()?.is_empty());

        world.mode("a", Some("ambient"));
        is_in(&world, "a", &a, true).await?;
        is_in(&world, "b", &b, false).await?;
        world.mode("a", None);
        is_in(&world, "a", &a, false).await?;

        world.api.label("namespaces", "sample", MODE, Some("ambient"));
        is_in(&world, "a", &a, true).await?;
        is_in(&world, "b", &b, true).await?;
        is_in(&world, "out", &out, false).await?;
        // Both are served: the way between them is the mesh's.
        ensure!(call(&a.host.sockets(), b.app()).await? == format!("{}\n", a.host.v4));
        agent
            .line(&["connection complete", "src.identity=\"spiffe://cluster.local/ns/sample/sa/a\""])
            .await?;

        // A pod's own label is stronger than its namespace's.
        world.mode("b", Some("none"));
        is_in(&world, "b", &b, false).await?;
        world.api.label("namespaces", "sample", MODE, None);
        is_in(&world, "a", &a, false).await?;
        ensure!(call(&world.outsider.sockets(), a.app()).await? == format!("{}\n", world.outsider.v4));
        Ok(())
    })
}

fn an_add_while_the_node_role_is_down_fails_and_succeeds_later() -> Result<()> {
    lab::block_on(async {
        let world = World::new()?;
        world.serve_api()?;
        let pod = world.sandbox("a")?;
        world.mode("a", Some("ambient"));
        let _agent = world.agent(&[("a", &pod)], "")?;

        let reason = world.refused("a", &pod.netns, pod.host.v4).await?;
        ensure!(reason.contains("sample/a") && reason.contains("pluginevent.sock"), "{reason}");
        ensure!(pod.captured()?.is_empty(), "{:?}", pod.captured()?);

        let node = world.node().await?;
        until("the retry succeeds", async || world.added("a", &pod).await.is_ok()).await?;
        is_in(&world, "a", &pod, true).await?;
        // The kubelet's report changes nothing.
        let captured = pod.captured()?;
        world.reported("a", &pod);
        ensure!(call(&world.kubelet(), pod.app()).await? == PROBE);
        ensure!(pod.captured()? == captured);

        // Stopped, its socket file stays, and nobody answers.
        node.stop().await?;
        let late = world.sandbox("b")?;
        world.mode("b", Some("ambient"));
        let reason = world.refused("b", &late.netns, late.host.v4).await?;
        ensure!(reason.contains("sample/b") && reason.contains("pluginevent.sock"), "{reason}");
        ensure!(late.captured()?.is_empty() && pod.captured()? == captured);
        Ok(())
    })
}

fn pods_out_of_the_mesh_always_start() -> Result<()> {
    lab::block_on(async {
        let world = World::new()?;
        let pod = world.sandbox("plain")?;
        let (netns, ip) = (&pod.netns, pod.host.v4);
        // Neither the API server nor the node role runs.
        for name in [None, Some(("kube-system", "coredns"))] {
            passed(&world.add(name, netns, ip).await?, ip)?;
        }
        // The control: a pod that might belong to the mesh does not start.
        let reason = world.refused("plain", netns, ip).await?;
        ensure!(reason.contains("127.0.0.1:6443") || reason.contains("refused"), "{reason}");

        world.serve_api()?;
        world.added("plain", &pod).await?;
        ensure!(pod.captured()?.is_empty());
        world.mode("plain", Some("ambient"));
        world.refused("plain", netns, ip).await?;
        Ok(())
    })
}

fn probes_reach_pods_of_the_mesh() -> Result<()> {
    lab::block_on(async {
        let world = World::new()?;
        world.serve_api()?;
        let pod = world.running("a")?;
        let outside = format!("{}\n", world.outsider.v4);
        let node_address = call(&world.kubelet(), pod.app()).await?;
        ensure!(node_address != PROBE, "nothing is rewritten before the pod is in the mesh");
        let _node = world.node().await?;
        world.mode("a", Some("ambient"));
        for (policy, plaintext) in [("", true), (STRICT, false)] {
            let agent = world.agent(&[("a", &pod)], policy)?;
            is_in(&world, "a", &pod, true).await?;
            ensure!(call(&world.kubelet(), pod.app()).await? == PROBE, "{policy}");
            // The control: others are not taken for the kubelet.
            let answer = call(&world.outsider.sockets(), pod.app()).await;
            ensure!(answer.as_ref().is_ok_and(|said| *said == outside) == plaintext, "{policy}: {answer:?}");
            let log = text(&agent.stop().await?);
            ensure!(log.contains("policy") != plaintext, "{log}");
            // Even with no agent.
            ensure!(call(&world.kubelet(), pod.app()).await? == PROBE, "{policy}");
        }
        world.mode("a", None);
        world.api.redirected("sample/a", None).await?;
        ensure!(call(&world.kubelet(), pod.app()).await? == node_address, "the address is probed no longer");
        Ok(())
    })
}

fn a_running_pod_that_cannot_be_enrolled_is_closed_and_tried_again() -> Result<()> {
    lab::block_on(async {
        let world = World::new()?;
        world.serve_api()?;
        let pod = world.running("a")?;
        let outsider = SocketAddr::new(world.outsider.v4.into(), APP);
        ensure!(call(&pod.host.sockets(), outsider).await.is_ok(), "the control");
        let node = world.node().await?;
        let closed = async |why: &str| {
            node.line(&["will be tried again", "sample/a", why]).await?;
            world.api.redirected("sample/a", Some("pending")).await?;
            ensure!(!pod.captured()?.is_empty(), "{why}: the rules must stay");
            ensure!(call(&pod.host.sockets(), outsider).await.is_err(), "{why}: the pod leaks");
            ensure!(call(&world.outsider.sockets(), pod.app()).await.is_err(), "{why}: the pod is open");
            Ok::<_, anyhow::Error>(())
        };
        // There is no agent.
        world.mode("a", Some("ambient"));
        closed("no agent is connected").await?;

        // There is one, but it cannot have its port.
        let taken = SocketAddr::new(pod.host.v4.into(), 15008);
        let (squatter, _) = pod.host.sockets().listen(taken, Transparent::Never)?;
        let _agent = world.agent(&[("a", &pod)], "")?;
        closed("15008").await?;

        drop(squatter);
        is_in(&world, "a", &pod, true).await?;
        ensure!(call(&pod.host.sockets(), outsider).await? == format!("{}\n", pod.host.v4));
        Ok(())
    })
}

fn a_namespace_that_is_no_pods_is_refused() -> Result<()> {
    lab::block_on(async {
        let world = World::new()?;
        world.serve_api()?;
        let (pod, _node) = (world.sandbox("a")?, world.node().await?);
        world.mode("a", Some("ambient"));
        let agent = world.agent(&[("a", &pod)], "")?;
        agent.line(&["agent started"]).await?;
        let socket = std::fs::metadata(world.path("run/pluginevent.sock"))?;
        ensure!(socket.permissions().mode() & 0o777 == 0o600, "{:o}", socket.permissions().mode());

        std::fs::write(world.path("netns/file"), "no namespace")?;
        bind(&pod.host.netns, &world.path("elsewhere"))?;
        symlink(world.path("elsewhere"), world.path("netns/link"))?;
        bind(world.netns(), &world.path("netns/host"))?;
        for (path, why) in [
            ("netns/file", "namespace"),
            ("elsewhere", "it is not in"),
            ("netns/../elsewhere", "it is not in"),
            ("netns/link", "it is not in"),
            ("netns/host", "it is the host's"),
            ("netns/none", "No such file"),
        ] {
            let reason = world.refused("a", &world.path(path), pod.host.v4).await?;
            ensure!(reason.contains("is refused") && reason.contains(why), "{path}: {reason}");
            ensure!(
                reason.contains(path.rsplit('/').next().unwrap_or(path)),
                "{path} is not named: {reason}"
            );
            ensure!(pod.captured()?.is_empty(), "{path}");
        }
        // The control: through its own name the same namespace is taken.
        until("the agent is there", async || world.added("a", &pod).await.is_ok()).await?;
        is_in(&world, "a", &pod, true).await
    })
}

/// A connection that stays, with an application that echoes once it has said who called.
async fn stay(from: &Pod, to: SocketAddr) -> Result<BufStream<TcpStream>> {
    let stream = from.host.sockets().connect(to, None, Duration::from_secs(10)).await?;
    let mut stream = BufStream::new(stream);
    let mut caller = String::new();
    stream.read_line(&mut caller).await?;
    ensure!(caller == format!("{}\n", from.host.v4), "{caller}");
    Ok(stream)
}

async fn still_echoes(stream: &mut BufStream<TcpStream>) -> Result<()> {
    stream.write_all(b"still here").await?;
    stream.flush().await?;
    let mut back = [0; 10];
    tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut back)).await??;
    ensure!(&back == b"still here");
    Ok(())
}

fn pods_are_served_again_when_the_agent_is_back() -> Result<()> {
    lab::block_on(async {
        let world = World::new()?;
        world.serve_api()?;
        let (a, b) = (world.running("a")?, world.running("b")?);
        let _node = world.node().await?;
        world.api.label("namespaces", "sample", MODE, Some("ambient"));
        let pods = [("a", &a), ("b", &b)];
        for _ in 0..2 {
            let agent = world.agent(&pods, "")?;
            for (name, pod) in pods {
                is_in(&world, name, pod, true).await?;
            }
            ensure!(call(&a.host.sockets(), b.app()).await? == format!("{}\n", a.host.v4));
            let log = agent.stop().await?;
            ensure!(through_mesh(&log), "{}", text(&log));
            // Nobody serves them: closed, not leaking, and no less enrolled.
            ensure!(call(&a.host.sockets(), b.app()).await.is_err());
            ensure!(call(&a.host.sockets(), SocketAddr::new(world.outsider.v4.into(), APP)).await.is_err());
            ensure!(a.listening()?.is_empty() && !a.captured()?.is_empty());
            ensure!(world.api.redirection("sample/a").as_deref() == Some("enabled"));
        }
        Ok(())
    })
}

fn through_mesh(log: &[Line]) -> bool {
    log.iter().any(|line| {
        line.text.contains("connection complete")
            && line.text.contains("src.identity=\"spiffe://cluster.local/ns/sample/sa/a\"")
    })
}

fn pods_stay_as_they_are_while_the_node_role_is_away() -> Result<()> {
    lab::block_on(async {
        let world = World::new()?;
        world.serve_api()?;
        let (a, b, c) = (world.running("a")?, world.running("b")?, world.running("c")?);
        for name in ["a", "b"] {
            world.mode(name, Some("ambient"));
        }
        let node = world.node().await?;
        let _agent = world.agent(&[("a", &a), ("b", &b), ("c", &c)], "")?;
        is_in(&world, "a", &a, true).await?;
        is_in(&world, "b", &b, true).await?;
        let mut open = stay(&a, SocketAddr::new(world.outsider.v4.into(), APP)).await?;
        let captured = a.captured()?;
        node.stop().await?;

        still_echoes(&mut open).await?;
        ensure!(call(&a.host.sockets(), b.app()).await? == format!("{}\n", a.host.v4));
        // What is asked for meanwhile is not lost.
        world.mode("c", Some("ambient"));
        world.mode("b", None);
        world.api.put("pods", kube::pod("sample", "gone", "node-1", None));
        world.api.delete("pods", "sample/gone");
        ensure!(c.captured()?.is_empty() && !b.captured()?.is_empty());

        let _node = world.node().await?;
        is_in(&world, "c", &c, true).await?;
        is_in(&world, "b", &b, false).await?;
        is_in(&world, "a", &a, true).await?;
        ensure!(a.captured()? == captured, "rules of a pod that stays are not touched");
        ensure!(
            call(&world.kubelet(), a.app()).await? == PROBE
                && call(&world.kubelet(), c.app()).await? == PROBE
        );
        let dump = world.dump().await?;
        ensure!(dump["workloadState"]["uid-a"]["state"] == "Up", "{}", dump["workloadState"]);
        // The agent was told of it once more, and did not begin anew with it.
        still_echoes(&mut open).await
    })
}
