//! The whole node role except for the kernel, between a scripted API server, a CNI plugin and an agent.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as a test does")]

mod api;
mod harness;

use std::time::Duration;

use api::{namespace, pod};
use harness::NodeHarness;
use isthmus_rt::drain::Outcome;
use serde_json::{Value, json};

const GOOD: &str = "/var/run/netns/good";
const ADD_A: &str = "add uid-a sample/a/sa";

fn ambient(mut pod: Value) -> Value {
    pod["metadata"]["labels"]["istio.io/dataplane-mode"] = json!("ambient");
    pod
}

fn enabled(mut pod: Value) -> Value {
    pod["metadata"]["annotations"]["ambient.istio.io/redirection"] = json!("enabled");
    pod
}

fn set_mode(node: &NodeHarness, name: &str, mode: Option<&str>) {
    node.api.change("pods", name, |pod| {
        pod["metadata"]["labels"]["istio.io/dataplane-mode"] = json!(mode.unwrap_or(""))
    });
}

#[tokio::test]
async fn a_running_pod_is_enrolled_and_withdrawn_by_its_label() {
    let node = NodeHarness::start(&[pod("a", Some("10.11.0.5")), pod("b", Some("10.11.0.6"))]).await;
    assert_eq!(*node.kernel.host.lock().unwrap(), 1);
    let agent = node.agent().await;
    agent.expect(&["end"]).await;

    set_mode(&node, "sample/a", Some("ambient"));
    agent.expect(&[ADD_A]).await;
    node.api.annotated("sample/a", Some("enabled")).await;
    assert_eq!(*node.kernel.rules.lock().unwrap(), 1);
    assert_eq!(node.kernel.probes.lock().unwrap()[&"10.11.0.5".parse().unwrap()], "uid-a".into());
    assert_eq!(node.kernel.probes.lock().unwrap().len(), 1, "b is not in the mesh");

    set_mode(&node, "sample/a", None);
    agent.expect(&["del uid-a"]).await;
    node.api.annotated("sample/a", None).await;
    assert_eq!(*node.kernel.rules.lock().unwrap(), 0);
    assert!(node.kernel.probes.lock().unwrap().is_empty());
}

#[tokio::test]
async fn running_pods_are_enrolled_and_withdrawn_by_their_namespaces_label() {
    let mut opted_out = pod("b", Some("10.11.0.6"));
    opted_out["metadata"]["labels"]["istio.io/dataplane-mode"] = json!("none");
    let node = NodeHarness::start(&[pod("a", Some("10.11.0.5")), opted_out]).await;
    let agent = node.agent().await;
    agent.expect(&["end"]).await;

    node.api.put("namespaces", namespace("sample", Some("ambient")));
    agent.expect(&[ADD_A]).await;
    node.api.annotated("sample/a", Some("enabled")).await;

    node.api.put("namespaces", namespace("sample", None));
    agent.expect(&["del uid-a"]).await;
    node.api.annotated("sample/a", None).await;
}

#[tokio::test]
async fn a_running_pod_is_pending_until_an_agent_connects() {
    let node = NodeHarness::start(&[ambient(pod("a", Some("10.11.0.5")))]).await;
    node.api.annotated("sample/a", Some("pending")).await;
    assert!(*node.kernel.rules.lock().unwrap() > 0, "fails closed");
    assert!(node.kernel.probes.lock().unwrap().is_empty());

    let agent = node.agent().await;
    // The snapshot names the pod already; the retry of the enrolment waits for an ack of its own.
    agent.expect(&[ADD_A, "end", ADD_A]).await;
    node.api.annotated("sample/a", Some("enabled")).await;
}

#[tokio::test]
async fn a_pod_that_the_agent_nacks_is_retried() {
    let node = NodeHarness::start(&[pod("a", Some("10.11.0.5"))]).await;
    let agent = node.agent().await;
    agent.expect(&["end"]).await;
    set_mode(&node, "sample/a", Some("ambient"));
    assert_eq!(agent.next("port in use").await, ADD_A);
    node.api.annotated("sample/a", Some("pending")).await;
    agent.expect(&[ADD_A]).await;
    node.api.annotated("sample/a", Some("enabled")).await;
}

#[tokio::test]
async fn the_plugin_is_answered_when_the_pod_is_enrolled() {
    let node = NodeHarness::start(&[ambient(pod("a", None))]).await;
    let agent = node.agent().await;
    agent.expect(&["end"]).await;
    let ((status, reason), ()) = tokio::join!(node.cmdadd("a", GOOD), agent.expect(&[ADD_A]));
    assert_eq!((status, reason.as_str()), (200, ""));
    node.api.annotated("sample/a", Some("enabled")).await;
    assert_eq!(node.kernel.probes.lock().unwrap()[&"10.11.0.9".parse().unwrap()], "uid-a".into());

    // The kubelet reports the address, which changes nothing.
    node.api
        .change("pods", "sample/a", |pod| pod["status"] = json!({"phase": "Running", "podIP": "10.11.0.9"}));
    // A deleted pod is withdrawn without touching its network namespace.
    let applied = *node.kernel.rules.lock().unwrap();
    node.api.delete("pods", "sample/a");
    agent.expect(&["del uid-a"]).await;
    node.until("the probe is gone", |node| node.kernel.probes.lock().unwrap().is_empty()).await;
    assert_eq!(*node.kernel.rules.lock().unwrap(), applied);
}

#[tokio::test]
async fn a_failed_add_says_why_and_is_rolled_back() {
    let node = NodeHarness::start(&[ambient(pod("a", None)), pod("out", None)]).await;
    let refused = async |pod: &'static str, netns: &'static str, why: &str| {
        let (status, reason) = node.cmdadd(pod, netns).await;
        assert_eq!(status, 500, "{reason}");
        assert!(reason.contains(why), "{reason}");
        assert_eq!(*node.kernel.rules.lock().unwrap(), 0, "{why}");
        assert!(node.kernel.probes.lock().unwrap().is_empty(), "{why}");
    };
    refused("a", GOOD, "no agent is connected").await;
    refused("a", "/etc/passwd", "is refused: it is the host's").await;
    refused("nobody", GOOD, "pod sample/nobody is not known on this node").await;
    refused("out", GOOD, "does not belong to the mesh").await;
    *node.kernel.failing.lock().unwrap() = true;
    refused("a", GOOD, "pod rules: on purpose").await;
    *node.kernel.failing.lock().unwrap() = false;

    let agent = node.agent().await;
    agent.expect(&["end"]).await;
    node.api.refuse_patches(Some(403));
    let ((status, reason), ()) = tokio::join!(node.cmdadd("a", GOOD), agent.expect(&[ADD_A, "del uid-a"]));
    assert_eq!(status, 500);
    assert!(reason.contains("redirection") && reason.contains("forbidden"), "{reason}");
    assert_eq!(*node.kernel.rules.lock().unwrap(), 0);

    // The kubelet's retry succeeds once the API server does.
    node.api.refuse_patches(None);
    let ((status, _), ()) = tokio::join!(node.cmdadd("a", GOOD), agent.expect(&[ADD_A]));
    assert_eq!(status, 200);
}

#[tokio::test]
async fn an_event_that_overtakes_the_watch_waits_for_it() {
    let node = NodeHarness::start(&[]).await;
    let agent = node.agent().await;
    agent.expect(&["end"]).await;
    let appear = async {
        tokio::task::yield_now().await;
        node.api.put("pods", ambient(pod("a", None)));
        agent.expect(&[ADD_A]).await;
    };
    let ((status, reason), ()) = tokio::join!(node.cmdadd("a", GOOD), appear);
    assert_eq!(status, 200, "{reason}");
}

#[tokio::test]
async fn an_event_that_overtakes_a_label_waits_for_it() {
    for plural in ["pods", "namespaces"] {
        let node = NodeHarness::start(&[pod("a", None)]).await;
        let agent = node.agent().await;
        agent.expect(&["end"]).await;
        let label = async {
            tokio::task::yield_now().await;
            let name = if plural == "pods" { "sample/a" } else { "sample" };
            node.api.change(plural, name, |object| {
                object["metadata"]["labels"]["istio.io/dataplane-mode"] = json!("ambient");
            });
            agent.expect(&[ADD_A]).await;
        };
        let ((status, reason), ()) = tokio::join!(node.cmdadd("a", GOOD), label);
        assert_eq!(status, 200, "{plural}: {reason}");
    }
}

#[tokio::test]
async fn pods_enrolled_before_the_start_are_adopted() {
    let ended = {
        let mut pod = enabled(ambient(pod("ended", Some("10.11.0.7"))));
        pod["status"]["phase"] = json!("Succeeded");
        pod
    };
    let left = enabled(pod("left", Some("10.11.0.8")));
    let node = NodeHarness::start(&[enabled(ambient(pod("a", Some("10.11.0.5")))), ended, left]).await;
    assert_eq!(*node.kernel.applied.lock().unwrap(), 2, "rules are rewritten");
    // A pod was unlabelled while the node role was down.
    node.api.annotated("sample/left", None).await;
    let agent = node.agent().await;
    agent.expect(&[ADD_A, "end"]).await;
    assert_eq!(
        node.kernel.probes.lock().unwrap().keys().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.11.0.5"]
    );
}

#[tokio::test]
async fn a_terminated_pod_is_withdrawn() {
    let node = NodeHarness::start(&[ambient(pod("a", Some("10.11.0.5")))]).await;
    // Its first reconciliation is over, so the snapshot names it.
    node.api.annotated("sample/a", Some("pending")).await;
    let agent = node.agent().await;
    agent.expect(&[ADD_A, "end", ADD_A]).await;
    node.api.annotated("sample/a", Some("enabled")).await;
    node.api.change("pods", "sample/a", |pod| pod["status"]["phase"] = json!("Failed"));
    agent.expect(&["del uid-a"]).await;
    node.api.annotated("sample/a", None).await;
}

#[tokio::test]
async fn a_drain_leaves_pods_redirected() {
    let node = NodeHarness::start(&[ambient(pod("a", Some("10.11.0.5")))]).await;
    node.api.annotated("sample/a", Some("pending")).await;
    let NodeHarness { drain, kernel, .. } = node;
    assert_eq!(drain.shutdown(Duration::from_secs(10)).await, Outcome::Drained);
    assert!(*kernel.rules.lock().unwrap() > 0);
}
