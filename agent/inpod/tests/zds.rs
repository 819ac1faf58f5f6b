//! The ZDS client against a scripted node role. The test's own namespace stands in for every pod's.

#[path = "support/harness.rs"]
mod harness;

use std::fs::File;
use std::time::Duration;

use isthmus_inpod::{PodState, manager};
use isthmus_kit::zds;
use isthmus_rt::drain::Outcome;

use harness::{ZdsHarness, here, pod};

#[tokio::test]
async fn pods_start_with_the_snapshot_and_stop_with_del() {
    let mut harness = ZdsHarness::new();
    let peer = harness.server.accept().await.unwrap();
    assert_eq!(harness.ready.pending(), [manager::READINESS]);
    assert_eq!(peer.add(&pod("u1"), here()).await.unwrap(), None);
    peer.send(&zds::keep("u9")).await.unwrap();
    peer.expect(zds::ACK).await.unwrap();
    assert_eq!(harness.ready.pending(), [manager::READINESS]);
    assert_eq!(peer.snapshot_sent().await.unwrap(), None);
    harness.until_ready(true).await;
    // Adding a running pod again is acked and restarts nothing.
    assert_eq!(peer.add(&pod("u1"), here()).await.unwrap(), None);
    assert_eq!(peer.add(&pod("u2"), here()).await.unwrap(), None);
    assert_eq!(peer.del("u1").await.unwrap(), None);
    assert_eq!(peer.del("unknown").await.unwrap(), None);
    assert_eq!(harness.recorder.log(), ["start u1 sample/web-1", "start u2 sample/web-1", "stop u1 Drain"]);
    // The list is published after every request, so the next ack is late enough.
    assert_eq!(peer.add(&pod("u2"), here()).await.unwrap(), None);
    let shown: Vec<_> =
        harness.pods.snapshot().iter().map(|entry| (entry.pod.uid.to_string(), entry.state)).collect();
    assert_eq!(shown, [("u2".to_owned(), PodState::Up)]);
    assert_eq!(harness.metric("workload_manager_active_proxy_count"), "1");
    assert_eq!(harness.metric("workload_manager_proxies_started_total"), "2");
    assert_eq!(harness.metric("workload_manager_proxies_stopped_total"), "1");
}

#[tokio::test]
async fn a_failed_start_is_nacked_in_one_short_line_and_blocks_readiness_if_it_is_the_agent_that_cannot() {
    let mut harness = ZdsHarness::new();
    let long = format!("no port {}\n  0: a backtrace", "é".repeat(2000));
    harness.recorder.fail("bad", &long);
    harness.recorder.fail("unable", "no descriptor");
    let peer = harness.snapshot(&["good"]).await;
    harness.until_ready(true).await;
    let error = peer.add(&pod("bad"), here()).await.unwrap().expect("a failed start is an error");
    assert!(
        error.starts_with("pod sample/web-1 (uid bad) could not be started: listeners: no port é")
            && !error.contains('\n'),
        "{error}"
    );
    // Published after every request, so another answer is late enough.
    assert_eq!(peer.add(&pod("good"), here()).await.unwrap(), None);
    assert!(harness.ready.pending().is_empty(), "what is in the way in one pod is that pod's");
    assert_eq!(harness.metric("workload_manager_pending_proxy_count"), "1");
    let shown = harness.pods.snapshot();
    assert_eq!(shown[0].state, PodState::Pending);
    assert!(shown[0].reason.as_deref().is_some_and(|reason| reason.starts_with("listeners: no port")));
    assert!(peer.add(&pod("unable"), here()).await.unwrap().is_some());
    harness.until_ready(false).await;
    // The connection survives, and deleting the pod restores readiness.
    assert_eq!(peer.del("unable").await.unwrap(), None);
    harness.until_ready(true).await;
    assert_eq!(peer.del("bad").await.unwrap(), None);
    let log = harness.recorder.log();
    assert_eq!(log[..2], ["start good sample/web-1", "fail bad sample/web-1"]);
}

#[tokio::test]
async fn a_failed_start_is_retried_without_a_request() {
    let mut harness = ZdsHarness::new();
    harness.recorder.fail("late", "not yet");
    let peer = harness.snapshot(&[]).await;
    assert_eq!(
        peer.add(&pod("late"), here()).await.unwrap().as_deref(),
        Some("pod sample/web-1 (uid late) could not be started: listeners: not yet")
    );
    harness.recorder.succeed();
    // Nothing but timers is left, so the paused clock advances to the next of them.
    tokio::time::pause();
    let mut log = harness.recorder.log.subscribe();
    let started = log.wait_for(|log| log.iter().any(|line| line == "start late sample/web-1"));
    tokio::time::timeout(Duration::from_secs(6), started).await.expect("retried within 6 s").unwrap();
    harness.until_ready(true).await;
}

#[tokio::test]
async fn running_pods_survive_a_reconnect_and_its_snapshot_stops_the_rest() {
    let mut harness = ZdsHarness::new();
    let peer = harness.snapshot(&["a", "b", "c"]).await;
    harness.until_ready(true).await;
    drop(peer);
    harness.until_ready(false).await;
    assert_eq!(harness.recorder.log().len(), 3, "a lost connection stops nothing");
    let peer = harness.server.accept().await.unwrap();
    assert_eq!(peer.add(&pod("a"), here()).await.unwrap(), None);
    peer.send(&zds::keep("b")).await.unwrap();
    peer.expect(zds::ACK).await.unwrap();
    assert_eq!(peer.snapshot_sent().await.unwrap(), None);
    assert_eq!(harness.recorder.log()[3..], ["stop c Drain"]);
    harness.until_ready(true).await;
}

#[tokio::test]
async fn invalid_and_out_of_order_requests_are_nacked_and_the_client_reconnects() {
    let no_info = b"\x0a\x03\x0a\x01u".to_vec();
    let large = vec![0x0a; 100 * 1024];
    let cases = [
        (b"\xff\xff\xff".to_vec(), "is no ZDS request"),
        (no_info, "no workload_info"),
        (zds::add(&pod("u")), "0 file descriptors instead of 1"),
        (zds::keep("u"), "after the snapshot"),
        (zds::SNAPSHOT_SENT.to_vec(), "second end of snapshot"),
        (large, "larger than 65536 bytes"),
    ];
    let mut harness = ZdsHarness::new();
    for (packet, want) in cases {
        let peer = harness.snapshot(&["a"]).await;
        peer.send(&packet).await.unwrap();
        let error = peer.answer().await.unwrap().expect(want);
        assert!(error.contains(want), "{error:?} should contain {want:?}");
        peer.expect_closed().await.unwrap();
    }
    harness.snapshot(&["a"]).await;
    assert_eq!(harness.recorder.log(), ["start a sample/web-1"], "the pod was never touched");
}

#[tokio::test]
async fn a_descriptor_that_is_no_namespace_is_nacked_and_the_connection_survives() {
    let mut harness = ZdsHarness::new();
    let peer = harness.snapshot(&[]).await;
    let file = File::open("/proc/self/status").unwrap();
    let error = peer.add(&pod("a"), &file).await.unwrap().expect("no namespace");
    assert!(error.contains("pod sample/web-1 (uid a) could not be started"), "{error}");
    assert_eq!(peer.add(&pod("a"), here()).await.unwrap(), None);
}

#[tokio::test]
async fn too_many_descriptors_are_nacked() {
    let mut harness = ZdsHarness::new();
    let peer = harness.snapshot(&[]).await;
    let file = here();
    let files = vec![std::os::fd::AsFd::as_fd(&file); 3];
    peer.send_with(&zds::add(&pod("a")), &files).await.unwrap();
    let error = peer.answer().await.unwrap().unwrap();
    assert!(error.contains("3 file descriptors instead of 1"), "{error}");
}

#[tokio::test]
async fn the_client_reconnects_until_the_node_role_stays() {
    let mut harness = ZdsHarness::new();
    let peer = harness.snapshot(&[]).await;
    drop(peer);
    for _ in 0..3 {
        let peer = harness.server.accept().await.unwrap();
        drop(peer);
    }
    harness.snapshot(&["a"]).await;
    harness.until_ready(false).await;
}

#[tokio::test]
async fn the_drain_ends_the_client_and_stops_no_pod() {
    let mut harness = ZdsHarness::new();
    let peer = harness.snapshot(&["a"]).await;
    assert_eq!(harness.drain.shutdown(Duration::from_secs(5)).await, Outcome::Drained);
    peer.expect_closed().await.unwrap();
    harness.tasks.wait().await;
    assert_eq!(harness.recorder.log.borrow().len(), 1, "the runtime drains the pods");
}
