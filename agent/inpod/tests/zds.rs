//! The agent's side of ZDS against a scripted node role. Any file of `/proc/self/ns/net` serves as a pod's namespace.

#[path = "support/world.rs"]
mod world;

use std::fs::File;
use std::time::Duration;

use isthmus_inpod::{PodState, manager};
use isthmus_kit::zds;
use isthmus_rt::drain::Outcome;

use world::{World, here, pod};

#[tokio::test]
async fn pods_come_with_the_snapshot_and_go_with_del() {
    let mut world = World::new();
    let peer = world.server.accept().await.unwrap();
    assert_eq!(world.ready.pending(), [manager::READINESS]);
    assert_eq!(peer.add(&pod("u1"), here()).await.unwrap(), None);
    peer.send(&zds::keep("u9")).await.unwrap();
    peer.expect(zds::ACK).await.unwrap();
    assert_eq!(world.ready.pending(), [manager::READINESS]);
    assert_eq!(peer.snapshot_sent().await.unwrap(), None);
    world.until_ready(true).await;
    // The same pod in the same namespace again is answered and not started again.
    assert_eq!(peer.add(&pod("u1"), here()).await.unwrap(), None);
    assert_eq!(peer.add(&pod("u2"), here()).await.unwrap(), None);
    assert_eq!(peer.del("u1").await.unwrap(), None);
    assert_eq!(peer.del("unknown").await.unwrap(), None);
    assert_eq!(world.recorder.log(), ["start u1 sample/web-1", "start u2 sample/web-1", "stop u1 Drain"]);
    // Shown after the next request at the latest.
    assert_eq!(peer.add(&pod("u2"), here()).await.unwrap(), None);
    let shown: Vec<_> = world.pods.snapshot().iter().map(|pod| (pod.uid.to_string(), pod.state)).collect();
    assert_eq!(shown, [("u2".to_owned(), PodState::Up)]);
    assert_eq!(world.metric("workload_manager_active_proxy_count"), "1");
    assert_eq!(world.metric("workload_manager_proxies_started_total"), "2");
    assert_eq!(world.metric("workload_manager_proxies_stopped_total"), "1");
}

#[tokio::test]
async fn a_pod_that_cannot_start_is_nacked_in_one_short_line_and_blocks_readiness() {
    let mut world = World::new();
    let long = format!("no port {}\n  0: a backtrace", "é".repeat(2000));
    world.recorder.fail("bad", &long);
    let peer = world.snapshot(&["good"]).await;
    world.until_ready(true).await;
    let error = peer.add(&pod("bad"), here()).await.unwrap().expect("a failed start is an error");
    assert!(error.starts_with("pod bad could not be started: no port é") && !error.contains('\n'), "{error}");
    world.until_ready(false).await;
    assert_eq!(world.metric("workload_manager_pending_proxy_count"), "1");
    assert_eq!(world.pods.snapshot()[0].state, PodState::Pending);
    // The connection goes on, and deleting the pod makes ready again.
    assert_eq!(peer.del("bad").await.unwrap(), None);
    world.until_ready(true).await;
    assert_eq!(world.recorder.log(), ["start good sample/web-1", "fail bad sample/web-1"]);
}

#[tokio::test]
async fn a_failed_start_is_tried_again_by_itself() {
    let mut world = World::new();
    world.recorder.fail("late", "not yet");
    let peer = world.snapshot(&[]).await;
    assert_eq!(
        peer.add(&pod("late"), here()).await.unwrap().as_deref(),
        Some("pod late could not be started: not yet")
    );
    world.recorder.heal();
    // From here on nothing but timers moves: the clock runs to the next of them.
    tokio::time::pause();
    let mut log = world.recorder.log.subscribe();
    let started = log.wait_for(|log| log.iter().any(|line| line == "start late sample/web-1"));
    tokio::time::timeout(Duration::from_secs(6), started).await.expect("tried again within 6 s").unwrap();
    world.until_ready(true).await;
}

#[tokio::test]
async fn a_new_connection_reconciles_and_running_pods_survive_it() {
    let mut world = World::new();
    let peer = world.snapshot(&["a", "b", "c"]).await;
    world.until_ready(true).await;
    drop(peer);
    world.until_ready(false).await;
    assert_eq!(world.recorder.log().len(), 3, "nothing is stopped by a lost connection");
    let peer = world.server.accept().await.unwrap();
    assert_eq!(peer.add(&pod("a"), here()).await.unwrap(), None);
    peer.send(&zds::keep("b")).await.unwrap();
    peer.expect(zds::ACK).await.unwrap();
    assert_eq!(peer.snapshot_sent().await.unwrap(), None);
    assert_eq!(world.recorder.log()[3..], ["stop c Drain"]);
    world.until_ready(true).await;
}

#[tokio::test]
async fn garbage_and_requests_out_of_order_are_nacked_and_the_connection_is_made_anew() {
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
    let mut world = World::new();
    for (packet, want) in cases {
        let peer = world.snapshot(&["a"]).await;
        peer.send(&packet).await.unwrap();
        let error = peer.answer().await.unwrap().expect(want);
        assert!(error.contains(want), "{error:?} should contain {want:?}");
        peer.expect_closed().await.unwrap();
    }
    world.snapshot(&["a"]).await;
    assert_eq!(world.recorder.log(), ["start a sample/web-1"], "the pod was never touched");
}

#[tokio::test]
async fn a_file_that_is_no_namespace_is_nacked_and_the_connection_goes_on() {
    let mut world = World::new();
    let peer = world.snapshot(&[]).await;
    let file = File::open("/proc/self/status").unwrap();
    let error = peer.add(&pod("a"), &file).await.unwrap().expect("no namespace");
    assert!(error.contains("pod a could not be started"), "{error}");
    assert_eq!(peer.add(&pod("a"), here()).await.unwrap(), None);
}

#[tokio::test]
async fn too_many_files_are_refused() {
    let mut world = World::new();
    let peer = world.snapshot(&[]).await;
    let file = here();
    let files = vec![std::os::fd::AsFd::as_fd(&file); 3];
    peer.send_with(&zds::add(&pod("a")), &files).await.unwrap();
    let error = peer.answer().await.unwrap().unwrap();
    assert!(error.contains("3 file descriptors instead of 1"), "{error}");
}

#[tokio::test]
async fn an_agent_that_is_started_first_connects_when_the_node_role_comes() {
    let mut world = World::new();
    let peer = world.snapshot(&[]).await;
    drop(peer);
    for _ in 0..3 {
        let peer = world.server.accept().await.unwrap();
        drop(peer);
    }
    world.snapshot(&["a"]).await;
    world.until_ready(false).await;
}

#[tokio::test]
async fn the_drain_ends_it() {
    let mut world = World::new();
    let peer = world.snapshot(&["a"]).await;
    assert_eq!(world.drain.shutdown(Duration::from_secs(5)).await, Outcome::Drained);
    peer.expect_closed().await.unwrap();
    world.tasks.wait().await;
    assert_eq!(world.recorder.log.borrow().len(), 1, "pods are their owner's to stop");
}
