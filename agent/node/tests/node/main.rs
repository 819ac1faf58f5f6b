//! The whole node role but for the kernel: a scripted API server on one side, a plugin and an agent on the others.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as a test does")]

mod api;
mod world;

use std::time::Duration;

use api::{namespace, pod};
use isthmus_rt::drain::Outcome;
use serde_json::{Value, json};
use world::World;

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

fn set_mode(world: &World, name: &str, mode: Option<&str>) {
    world.api.change("pods", name, |pod| {
        pod["metadata"]["labels"]["istio.io/dataplane-mode"] = json!(mode.unwrap_or(""))
    });
}

#[tokio::test]
async fn a_running_pod_follows_its_label() {
    let world = World::start(&[pod("a", Some("10.11.0.5")), pod("b", Some("10.11.0.6"))]).await;
    assert_eq!(*world.kernel.host.lock().unwrap(), 1);
    let agent = world.agent().await;
    agent.expect(&["end"]).await;

    set_mode(&world, "sample/a", Some("ambient"));
    agent.expect(&[ADD_A]).await;
    world.api.annotated("sample/a", Some("enabled")).await;
    assert_eq!(*world.kernel.rules.lock().unwrap(), 1);
    assert_eq!(world.kernel.probes.lock().unwrap()[&"10.11.0.5".parse().unwrap()], "uid-a".into());
    assert_eq!(world.kernel.probes.lock().unwrap().len(), 1, "b is not in the mesh");

    set_mode(&world, "sample/a", None);
    agent.expect(&["del uid-a"]).await;
    world.api.annotated("sample/a", None).await;
    assert_eq!(*world.kernel.rules.lock().unwrap(), 0);
    assert!(world.kernel.probes.lock().unwrap().is_empty());
}

#[tokio::test]
async fn running_pods_follow_their_namespaces_label() {
    let mut opted_out = pod("b", Some("10.11.0.6"));
    opted_out["metadata"]["labels"]["istio.io/dataplane-mode"] = json!("none");
    let world = World::start(&[pod("a", Some("10.11.0.5")), opted_out]).await;
    let agent = world.agent().await;
    agent.expect(&["end"]).await;

    world.api.put("namespaces", namespace("sample", Some("ambient")));
    agent.expect(&[ADD_A]).await;
    world.api.annotated("sample/a", Some("enabled")).await;

    world.api.put("namespaces", namespace("sample", None));
    agent.expect(&["del uid-a"]).await;
    world.api.annotated("sample/a", None).await;
}

#[tokio::test]
async fn a_running_pod_is_pending_until_there_is_an_agent() {
    let world = World::start(&[ambient(pod("a", Some("10.11.0.5")))]).await;
    world.api.annotated("sample/a", Some("pending")).await;
    assert!(*world.kernel.rules.lock().unwrap() > 0, "closed, not leaking");
    assert!(world.kernel.probes.lock().unwrap().is_empty());

    let agent = world.agent().await;
    // Its snapshot names the pod already, and the retry asks for the ack that counts.
    agent.expect(&[ADD_A, "end", ADD_A]).await;
    world.api.annotated("sample/a", Some("enabled")).await;
}

#[tokio::test]
async fn a_pod_that_the_agent_refuses_is_tried_again() {
    let world = World::start(&[pod("a", Some("10.11.0.5"))]).await;
    let agent = world.agent().await;
    agent.expect(&["end"]).await;
    set_mode(&world, "sample/a", Some("ambient"));
    assert_eq!(agent.next("port in use").await, ADD_A);
    world.api.annotated("sample/a", Some("pending")).await;
    agent.expect(&[ADD_A]).await;
    world.api.annotated("sample/a", Some("enabled")).await;
}

#[tokio::test]
async fn the_plugin_gets_its_answer_when_the_pod_is_captured() {
    let world = World::start(&[ambient(pod("a", None))]).await;
    let agent = world.agent().await;
    agent.expect(&["end"]).await;
    let ((status, reason), ()) = tokio::join!(world.cmdadd("a", GOOD), agent.expect(&[ADD_A]));
    assert_eq!((status, reason.as_str()), (200, ""));
    world.api.annotated("sample/a", Some("enabled")).await;
    assert_eq!(world.kernel.probes.lock().unwrap()[&"10.11.0.9".parse().unwrap()], "uid-a".into());

    // The kubelet reports the address; nothing is left to do for it.
    world
        .api
        .change("pods", "sample/a", |pod| pod["status"] = json!({"phase": "Running", "podIP": "10.11.0.9"}));
    // A pod that is deleted leaves the mesh without work in its namespace.
    let applied = *world.kernel.rules.lock().unwrap();
    world.api.delete("pods", "sample/a");
    agent.expect(&["del uid-a"]).await;
    world.until("the probe is gone", |world| world.kernel.probes.lock().unwrap().is_empty()).await;
    assert_eq!(*world.kernel.rules.lock().unwrap(), applied);
}

#[tokio::test]
async fn a_refused_add_says_why_and_leaves_nothing_behind() {
    let world = World::start(&[ambient(pod("a", None)), pod("out", None)]).await;
    let refused = async |pod: &'static str, netns: &'static str, why: &str| {
        let (status, reason) = world.cmdadd(pod, netns).await;
        assert_eq!(status, 500, "{reason}");
        assert!(reason.contains(why), "{reason}");
        assert_eq!(*world.kernel.rules.lock().unwrap(), 0, "{why}");
        assert!(world.kernel.probes.lock().unwrap().is_empty(), "{why}");
    };
    refused("a", GOOD, "no agent is connected").await;
    refused("a", "/etc/passwd", "is refused: it is not in /var/run/netns").await;
    refused("nobody", GOOD, "pod sample/nobody is not known on this node").await;
    refused("out", GOOD, "does not belong to the mesh").await;
    *world.kernel.failing.lock().unwrap() = true;
    refused("a", GOOD, "pod rules: on purpose").await;
    *world.kernel.failing.lock().unwrap() = false;

    let agent = world.agent().await;
    agent.expect(&["end"]).await;
    world.api.refuse_patches(Some(403));
    let ((status, reason), ()) = tokio::join!(world.cmdadd("a", GOOD), agent.expect(&[ADD_A, "del uid-a"]));
    assert_eq!(status, 500);
    assert!(reason.contains("redirection") && reason.contains("forbidden"), "{reason}");
    assert_eq!(*world.kernel.rules.lock().unwrap(), 0);

    // And the kubelet's retry, when all is well again.
    world.api.refuse_patches(None);
    let ((status, _), ()) = tokio::join!(world.cmdadd("a", GOOD), agent.expect(&[ADD_A]));
    assert_eq!(status, 200);
}

#[tokio::test]
async fn an_event_that_overtakes_the_watch_waits_for_it() {
    let world = World::start(&[]).await;
    let agent = world.agent().await;
    agent.expect(&["end"]).await;
    let appear = async {
        tokio::task::yield_now().await;
        world.api.put("pods", ambient(pod("a", None)));
        agent.expect(&[ADD_A]).await;
    };
    let ((status, reason), ()) = tokio::join!(world.cmdadd("a", GOOD), appear);
    assert_eq!(status, 200, "{reason}");
}

#[tokio::test]
async fn an_event_that_overtakes_a_label_waits_for_it() {
    for plural in ["pods", "namespaces"] {
        let world = World::start(&[pod("a", None)]).await;
        let agent = world.agent().await;
        agent.expect(&["end"]).await;
        let label = async {
            tokio::task::yield_now().await;
            let name = if plural == "pods" { "sample/a" } else { "sample" };
            world.api.change(plural, name, |object| {
                object["metadata"]["labels"]["istio.io/dataplane-mode"] = json!("ambient");
            });
            agent.expect(&[ADD_A]).await;
        };
        let ((status, reason), ()) = tokio::join!(world.cmdadd("a", GOOD), label);
        assert_eq!(status, 200, "{plural}: {reason}");
    }
}

#[tokio::test]
async fn what_was_enrolled_before_the_start_is_taken_over() {
    let ended = {
        let mut pod = enabled(ambient(pod("ended", Some("10.11.0.7"))));
        pod["status"]["phase"] = json!("Succeeded");
        pod
    };
    let left = enabled(pod("left", Some("10.11.0.8")));
    let world = World::start(&[enabled(ambient(pod("a", Some("10.11.0.5")))), ended, left]).await;
    assert_eq!(*world.kernel.applied.lock().unwrap(), 2, "rules are written again");
    // One was unlabelled while nobody watched.
    world.api.annotated("sample/left", None).await;
    let agent = world.agent().await;
    agent.expect(&[ADD_A, "end"]).await;
    assert_eq!(
        world.kernel.probes.lock().unwrap().keys().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.11.0.5"]
    );
}

#[tokio::test]
async fn a_terminated_pod_leaves_the_mesh() {
    let world = World::start(&[ambient(pod("a", Some("10.11.0.5")))]).await;
    // Its first turn is over, so that the snapshot names it.
    world.api.annotated("sample/a", Some("pending")).await;
    let agent = world.agent().await;
    agent.expect(&[ADD_A, "end", ADD_A]).await;
    world.api.annotated("sample/a", Some("enabled")).await;
    world.api.change("pods", "sample/a", |pod| pod["status"]["phase"] = json!("Failed"));
    agent.expect(&["del uid-a"]).await;
    world.api.annotated("sample/a", None).await;
}

#[tokio::test]
async fn it_stops_and_leaves_pods_captured() {
    let world = World::start(&[ambient(pod("a", Some("10.11.0.5")))]).await;
    world.api.annotated("sample/a", Some("pending")).await;
    let World { drain, kernel, .. } = world;
    assert_eq!(drain.shutdown(Duration::from_secs(10)).await, Outcome::Drained);
    assert!(*kernel.rules.lock().unwrap() > 0);
}
