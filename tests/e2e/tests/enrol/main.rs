//! Pods enter and leave the mesh: the real node role, plugin and agent over a real kernel.

mod attacks;
mod kills;
mod node_lab;

use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::Duration;

use anyhow::{Result, ensure};
use isthmus_kit::kube;
use isthmus_kit::process::{Line, text};
use isthmus_kit::wait::until;
use isthmus_kit::{lab, probe};
use isthmus_node::rules::{EARLIER_MARK, PROBE_V4};
use isthmus_sys::capture::Capture;
use isthmus_sys::nft::{self, Op, Ruleset, Statement};
use isthmus_sys::socket::Transparent;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream};
use tokio::net::TcpStream;

use node_lab::{APP, MODE, NodeLab, Pod, bind, call, passed, uid};

/// The source address of probes as pods see it.
const PROBE: &str = "169.254.7.127\n";
/// A policy that admits no client without an identity.
const STRICT: &str = "policies:\n- name: strict\n  namespace: sample\n  scope: Namespace\n  action: Deny\n  \
                      rules: [[[{notPrincipals: [!Presence []]}]]]\n";

fn main() -> std::process::ExitCode {
    lab::main_with_programs(&lab::tests![
        a_running_pod_follows_its_own_label_and_its_namespaces_label,
        an_add_fails_while_the_node_role_is_down_and_succeeds_once_it_is_up,
        pods_outside_the_mesh_start_without_api_server_and_node_role,
        kubelet_probes_reach_pods_of_the_mesh,
        a_neighbour_cannot_pose_as_the_kubelet,
        a_running_pod_that_cannot_be_enrolled_is_closed_and_retried,
        a_namespace_that_is_not_a_pods_is_refused,
        pods_are_served_again_after_an_agent_restart,
        pods_keep_their_state_while_the_node_role_is_down,
        rules_of_an_earlier_version_are_replaced_at_once,
        attacks::a_pod_that_loses_its_capture_is_closed_within_five_seconds,
        attacks::a_pod_with_a_road_past_its_rules_is_not_enabled,
        kills::no_plaintext_leaves_while_agent_and_node_role_are_killed_at_random
    ])
}

/// Waits until a pod is captured and served, or neither.
async fn is_in(lab: &NodeLab, name: &str, pod: &Pod, want: bool) -> Result<()> {
    lab.api.redirected(&format!("sample/{name}"), want.then_some("enabled")).await?;
    pod.served(want).await?;
    if !want {
        // What the agent still carries needs rules until it has ended.
        until("no trace in the pod", async || pod.captured().is_ok_and(|captured| captured.is_empty()))
            .await?;
    }
    ensure!(pod.captured()?.is_empty() != want, "{name}: in is not {want}: {:?}", pod.captured()?);
    Ok(())
}

fn a_running_pod_follows_its_own_label_and_its_namespaces_label() -> Result<()> {
    lab::block_on(async {
        let lab = NodeLab::new()?;
        lab.serve_api()?;
        let (a, b) = (lab.running("a")?, lab.running("b")?);
        // Control: as far as its namespace's label goes, this one would be in too.
        let out = lab.running("out")?;
        lab.mode("out", Some("none"));
        let _node = lab.node().await?;
        let agent = lab.agent(&[("a", &a), ("b", &b), ("out", &out)], "")?;
        ensure!(a.captured()?.is_empty() && a.listening()?.is_empty());

        lab.mode("a", Some("ambient"));
        is_in(&lab, "a", &a, true).await?;
        is_in(&lab, "b", &b, false).await?;
        lab.mode("a", None);
        is_in(&lab, "a", &a, false).await?;

        lab.api.label("namespaces", "sample", MODE, Some("ambient"));
        is_in(&lab, "a", &a, true).await?;
        is_in(&lab, "b", &b, true).await?;
        is_in(&lab, "out", &out, false).await?;
        // Both are served: traffic between them goes through the mesh.
        ensure!(call(&a.host.sockets(), b.app()).await? == format!("{}\n", a.host.v4));
        agent
            .line(&["connection complete", "src.identity=\"spiffe://cluster.local/ns/sample/sa/a\""])
            .await?;

        // A pod's own label overrides its namespace's.
        lab.mode("b", Some("none"));
        is_in(&lab, "b", &b, false).await?;
        lab.api.label("namespaces", "sample", MODE, None);
        is_in(&lab, "a", &a, false).await?;
        ensure!(call(&lab.outsider.sockets(), a.app()).await? == format!("{}\n", lab.outsider.v4));
        Ok(())
    })
}

fn an_add_fails_while_the_node_role_is_down_and_succeeds_once_it_is_up() -> Result<()> {
    lab::block_on(async {
        let lab = NodeLab::new()?;
        lab.serve_api()?;
        let pod = lab.sandbox("a")?;
        lab.mode("a", Some("ambient"));
        let _agent = lab.agent(&[("a", &pod)], "")?;

        let reason = lab.refused("a", &pod.netns, pod.host.v4).await?;
        ensure!(reason.contains("sample/a") && reason.contains("pluginevent.sock"), "{reason}");
        ensure!(pod.captured()?.is_empty(), "{:?}", pod.captured()?);

        let node = lab.node().await?;
        until("the retry succeeds", async || lab.added("a", &pod).await.is_ok()).await?;
        is_in(&lab, "a", &pod, true).await?;
        // The kubelet's report of the address changes nothing.
        let captured = pod.captured()?;
        lab.reported("a", &pod);
        ensure!(call(&lab.kubelet(), pod.app()).await? == PROBE);
        ensure!(pod.captured()? == captured);

        // After it stopped, its socket file stays without a listener.
        node.stop().await?;
        let late = lab.sandbox("b")?;
        lab.mode("b", Some("ambient"));
        let reason = lab.refused("b", &late.netns, late.host.v4).await?;
        ensure!(reason.contains("sample/b") && reason.contains("pluginevent.sock"), "{reason}");
        ensure!(late.captured()?.is_empty() && pod.captured()? == captured);
        Ok(())
    })
}

fn pods_outside_the_mesh_start_without_api_server_and_node_role() -> Result<()> {
    lab::block_on(async {
        let lab = NodeLab::new()?;
        let pod = lab.sandbox("plain")?;
        let (netns, ip) = (&pod.netns, pod.host.v4);
        // Neither the API server nor the node role runs.
        for name in [None, Some(("kube-system", "coredns"))] {
            passed(&lab.add(name, netns, ip).await?, ip)?;
        }
        // Control: a pod that might belong to the mesh does not start.
        let reason = lab.refused("plain", netns, ip).await?;
        ensure!(reason.contains("127.0.0.1:6443") || reason.contains("refused"), "{reason}");

        lab.serve_api()?;
        lab.added("plain", &pod).await?;
        ensure!(pod.captured()?.is_empty());
        lab.mode("plain", Some("ambient"));
        lab.refused("plain", netns, ip).await?;
        Ok(())
    })
}

fn kubelet_probes_reach_pods_of_the_mesh() -> Result<()> {
    lab::block_on(async {
        let lab = NodeLab::new()?;
        lab.serve_api()?;
        let pod = lab.running("a")?;
        let outside = format!("{}\n", lab.outsider.v4);
        let node_address = call(&lab.kubelet(), pod.app()).await?;
        ensure!(node_address != PROBE, "nothing is rewritten before the pod is in the mesh");
        let _node = lab.node().await?;
        lab.mode("a", Some("ambient"));
        for (policy, plaintext) in [("", true), (STRICT, false)] {
            let agent = lab.agent(&[("a", &pod)], policy)?;
            is_in(&lab, "a", &pod, true).await?;
            ensure!(call(&lab.kubelet(), pod.app()).await? == PROBE, "{policy}");
            // Control: other sources are not treated as the kubelet.
            let answer = call(&lab.outsider.sockets(), pod.app()).await;
            ensure!(answer.as_ref().is_ok_and(|said| *said == outside) == plaintext, "{policy}: {answer:?}");
            let log = text(&agent.stop().await?);
            ensure!(log.contains("policy") != plaintext, "{log}");
            // Even without an agent.
            ensure!(call(&lab.kubelet(), pod.app()).await? == PROBE, "{policy}");
        }
        lab.mode("a", None);
        lab.api.redirected("sample/a", None).await?;
        ensure!(
            call(&lab.kubelet(), pod.app()).await? == node_address,
            "the probe source is no longer rewritten"
        );
        Ok(())
    })
}

/// On a bridged network, with the kubelet's address on its own interface.
fn a_neighbour_cannot_pose_as_the_kubelet() -> Result<()> {
    lab::block_on(async {
        let lab = NodeLab::new()?;
        lab.serve_api()?;
        let pod = lab.running("a")?;
        let neighbour = lab.host()?;
        isthmus_sys::route::add_address(&neighbour.netns, "eth0", format!("{PROBE_V4}/32").parse()?)?;
        let wire = Capture::open(&pod.host.netns, "eth0")?;
        let send = async || {
            let patience = Duration::from_millis(300);
            let sent = neighbour.sockets().connect(pod.app(), Some(PROBE_V4.into()), patience).await;
            usize::from(sent.is_ok()) + probe::syns_from(&wire.drain(), PROBE_V4.into(), APP)
        };
        ensure!(send().await > 0, "control: nothing keeps it before the node role has started");
        let (_node, _agent) = (lab.node().await?, lab.agent(&[("a", &pod)], STRICT)?);
        lab.mode("a", Some("ambient"));
        is_in(&lab, "a", &pod, true).await?;
        ensure!(send().await == 0, "a neighbour's packets reach the pod as the kubelet's");
        ensure!(call(&lab.kubelet(), pod.app()).await? == PROBE, "the kubelet's own");
        // Where the kubelet probes nothing, its address is no exemption either.
        let other = SocketAddr::new(pod.host.v4.into(), APP + 1);
        let (open, _) = pod.host.sockets().listen(other, Transparent::Never)?;
        let _ = lab.kubelet().connect(other, None, Duration::from_secs(2)).await;
        let accepted = tokio::time::timeout(Duration::from_millis(500), open.accept()).await;
        ensure!(accepted.is_err(), "a port without a probe is exempt");
        Ok(())
    })
}

fn a_running_pod_that_cannot_be_enrolled_is_closed_and_retried() -> Result<()> {
    lab::block_on(async {
        let lab = NodeLab::new()?;
        lab.serve_api()?;
        let pod = lab.running("a")?;
        let outsider = SocketAddr::new(lab.outsider.v4.into(), APP);
        ensure!(call(&pod.host.sockets(), outsider).await.is_ok(), "control");
        let node = lab.node().await?;
        let closed = async |why: &str| {
            node.line(&["will be retried", why, "namespace=sample name=a "]).await?;
            lab.api.redirected("sample/a", Some("pending")).await?;
            ensure!(!pod.captured()?.is_empty(), "{why}: the rules must stay");
            ensure!(call(&pod.host.sockets(), outsider).await.is_err(), "{why}: the pod leaks");
            ensure!(call(&lab.outsider.sockets(), pod.app()).await.is_err(), "{why}: the pod is open");
            Ok::<_, anyhow::Error>(())
        };
        // No agent is connected.
        lab.mode("a", Some("ambient"));
        closed("no agent is connected").await?;

        // An agent is connected, but its port in the pod is occupied.
        let taken = SocketAddr::new(pod.host.v4.into(), 15008);
        let (squatter, _) = pod.host.sockets().listen(taken, Transparent::Never)?;
        let _agent = lab.agent(&[("a", &pod)], "")?;
        closed("15008").await?;

        drop(squatter);
        is_in(&lab, "a", &pod, true).await?;
        ensure!(call(&pod.host.sockets(), outsider).await? == format!("{}\n", pod.host.v4));
        Ok(())
    })
}

fn a_namespace_that_is_not_a_pods_is_refused() -> Result<()> {
    lab::block_on(async {
        let lab = NodeLab::new()?;
        lab.serve_api()?;
        let (pod, _node) = (lab.sandbox("a")?, lab.node().await?);
        lab.mode("a", Some("ambient"));
        let agent = lab.agent(&[("a", &pod)], "")?;
        agent.line(&["agent started"]).await?;
        let socket = std::fs::metadata(lab.path("run/pluginevent.sock"))?;
        ensure!(socket.permissions().mode() & 0o777 == 0o600, "{:o}", socket.permissions().mode());

        std::fs::write(lab.path("netns/file"), "no namespace")?;
        bind(lab.netns(), &lab.path("netns/host"))?;
        let other = lab.sandbox("other")?;
        bind(&other.host.netns, &lab.path("netns/another"))?;
        for (path, why) in [
            ("netns/file", "namespace"),
            ("netns/host", "it is the host's"),
            ("netns/another", "a process of the pod"),
            ("netns/none", "No such file"),
        ] {
            let reason = lab.refused("a", &lab.path(path), pod.host.v4).await?;
            ensure!(reason.contains("is refused") && reason.contains(why), "{path}: {reason}");
            ensure!(
                reason.contains(path.rsplit('/').next().unwrap_or(path)),
                "{path} is not named: {reason}"
            );
            ensure!(pod.captured()?.is_empty(), "{path}");
        }
        // Control: its own namespace is accepted, wherever its file is.
        bind(&pod.host.netns, &lab.path("elsewhere"))?;
        symlink(lab.path("elsewhere"), lab.path("netns/link"))?;
        let (link, ip) = (lab.path("netns/link"), pod.host.v4);
        let added = async || passed(&lab.add(Some(("sample", "a")), &link, ip).await?, ip);
        until("the agent is there", async || added().await.is_ok()).await?;
        is_in(&lab, "a", &pod, true).await
    })
}

/// A long-lived connection to an application that sends the caller's address and then echoes.
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

fn pods_are_served_again_after_an_agent_restart() -> Result<()> {
    lab::block_on(async {
        let lab = NodeLab::new()?;
        lab.serve_api()?;
        let (a, b) = (lab.running("a")?, lab.running("b")?);
        let _node = lab.node().await?;
        lab.api.label("namespaces", "sample", MODE, Some("ambient"));
        let pods = [("a", &a), ("b", &b)];
        for _ in 0..2 {
            let agent = lab.agent(&pods, "")?;
            for (name, pod) in pods {
                is_in(&lab, name, pod, true).await?;
            }
            ensure!(call(&a.host.sockets(), b.app()).await? == format!("{}\n", a.host.v4));
            let log = agent.stop().await?;
            ensure!(through_mesh(&log), "{}", text(&log));
            // Without an agent they are closed, do not leak, and stay enrolled.
            ensure!(call(&a.host.sockets(), b.app()).await.is_err());
            ensure!(call(&a.host.sockets(), SocketAddr::new(lab.outsider.v4.into(), APP)).await.is_err());
            ensure!(a.listening()?.is_empty() && !a.captured()?.is_empty());
            ensure!(lab.api.redirection("sample/a").as_deref() == Some("enabled"));
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

fn pods_keep_their_state_while_the_node_role_is_down() -> Result<()> {
    lab::block_on(async {
        let lab = NodeLab::new()?;
        lab.serve_api()?;
        let (a, b, c) = (lab.running("a")?, lab.running("b")?, lab.running("c")?);
        for name in ["a", "b"] {
            lab.mode(name, Some("ambient"));
        }
        let node = lab.node().await?;
        let _agent = lab.agent(&[("a", &a), ("b", &b), ("c", &c)], "")?;
        is_in(&lab, "a", &a, true).await?;
        is_in(&lab, "b", &b, true).await?;
        let mut open = stay(&a, SocketAddr::new(lab.outsider.v4.into(), APP)).await?;
        let captured = a.captured()?;
        node.stop().await?;

        still_echoes(&mut open).await?;
        ensure!(call(&a.host.sockets(), b.app()).await? == format!("{}\n", a.host.v4));
        // Changes made meanwhile are not lost.
        lab.mode("c", Some("ambient"));
        lab.mode("b", None);
        lab.api.put("pods", kube::pod("sample", "gone", "node-1", None));
        lab.api.delete("pods", "sample/gone");
        ensure!(c.captured()?.is_empty() && !b.captured()?.is_empty());

        let _node = lab.node().await?;
        is_in(&lab, "c", &c, true).await?;
        is_in(&lab, "b", &b, false).await?;
        is_in(&lab, "a", &a, true).await?;
        ensure!(a.captured()? == captured, "the rules of an unchanged pod were rewritten");
        ensure!(
            call(&lab.kubelet(), a.app()).await? == PROBE && call(&lab.kubelet(), c.app()).await? == PROBE
        );
        let dump = lab.dump().await?;
        ensure!(dump["workloadState"][uid("a")]["state"] == "Up", "{}", dump["workloadState"]);
        // The agent received the pod again and did not restart its proxy.
        still_echoes(&mut open).await
    })
}

/// The rules as they were before connections of the agent had a zone and older ones a mark.
fn earlier_version(mut rules: Ruleset) -> Ruleset {
    let chains = rules.tables.iter_mut().flat_map(|table| &mut table.chains);
    for chain in chains {
        chain.rules.retain(|rule| {
            !rule.statements.iter().any(|it| {
                matches!(it, Statement::SetCtOriginalZone(_) | Statement::CtEstablished)
                    || *it == Statement::CtMark { mask: 0xfff, op: Op::Eq, value: EARLIER_MARK }
            })
        });
    }
    rules.tables.iter_mut().filter(|table| table.name == "isthmus-guard").for_each(|table| {
        table.chains.retain(|chain| chain.name != "prerouting");
    });
    rules
}

fn rules_of_an_earlier_version_are_replaced_at_once() -> Result<()> {
    lab::block_on(async {
        let lab = NodeLab::new()?;
        lab.serve_api()?;
        let pod = lab.running("a")?;
        lab.mode("a", Some("ambient"));
        let node = lab.node().await?;
        let _agent = lab.agent(&[("a", &pod)], "")?;
        is_in(&lab, "a", &pod, true).await?;
        node.stop().await?;
        let captured = pod.captured()?;
        let earlier = earlier_version(captured.rules.clone());
        ensure!(earlier != captured.rules);
        nft::apply(&pod.host.netns, &earlier)?;
        let mut open = stay(&pod, SocketAddr::new(lab.outsider.v4.into(), APP)).await?;

        let node = lab.node().await?;
        node.line(&["not this version's, replacing them", "a"]).await?;
        ensure!(pod.captured()? == captured, "{:?}", pod.captured()?);
        ensure!(lab.api.redirection("sample/a").as_deref() == Some("enabled"));
        still_echoes(&mut open).await?;
        let answer = call(&pod.host.sockets(), SocketAddr::new(lab.outsider.v4.into(), APP)).await?;
        ensure!(answer == format!("{}\n", pod.host.v4));
        ensure!(!text(&node.stop().await?).contains("is not captured"), "it was closed");
        Ok(())
    })
}
