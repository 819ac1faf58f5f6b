//! The installer on a tree of folders: installation, readiness, repair, tokens, upgrade and removal. Time is paused, and
//! passes when nothing else is to be done.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as a test does")]

mod tree;

use std::time::Duration;

use isthmus_install::conflist::Kind;
use isthmus_install::{End, READY};
use isthmus_kit::logs::LogCapture;
use serde_json::json;
use tokio::time::sleep;
use tree::{CALICO, LIST, Tree};

const SUCCESS: &str = "istio_cni_installs_total{result=\"SUCCESS\"}";
const DAEMON_SET: &str = "GET /apis/apps/v1/namespaces/istio-system/daemonsets/istio-cni-node";
const NODE: &str = "GET /api/v1/nodes/n1";

fn ours() -> Vec<String> {
    ["calico", "portmap", "istio-cni"].map(str::to_owned).into()
}

fn theirs() -> Vec<String> {
    ["calico", "portmap"].map(str::to_owned).into()
}

/// Long enough for what follows from a change at once, too short for a repair that has to wait. Several sleeps, since the
/// clock may jump to the end of one before a change that is known by then is looked at.
async fn a_moment() {
    for _ in 0..8 {
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn it_waits_for_a_network_and_is_ready_when_everything_is_installed() {
    let log = LogCapture::start(|it| *it.level() <= tracing::Level::WARN);
    let tree = Tree::new();
    std::fs::write(tree.config.bin_dir.join("istio-cni.tmp.1234"), "left by a run that was killed").unwrap();
    tree.write("00-broken.conflist", "{");
    let running = tree.start();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(running.readiness.pending(), [READY]);
    assert_eq!(running.metric("istio_cni_install_ready"), 0);
    let waiting = log.take();
    let about = waiting.iter().filter(|line| line.contains("no network configuration yet")).count();
    assert_eq!(about, 1, "once, not in every round: {waiting:?}");
    assert!(
        waiting.iter().any(|line| line.contains("00-broken.conflist is invalid: not JSON")),
        "{waiting:?}"
    );

    tree.write(CALICO, LIST);
    tree.write("87-podman.conflist", LIST);
    running.ready().await;
    assert_eq!(tree.types(CALICO), ours());
    assert_eq!(Tree::mode(&tree.net(CALICO)), 0o644, "as it was");
    assert_eq!(tree.types("87-podman.conflist"), theirs());
    assert_eq!(std::fs::read(tree.binary()).unwrap(), b"binary 1");
    assert_eq!((Tree::mode(&tree.binary()), Tree::mode(&tree.kubeconfig())), (0o755, 0o600));
    assert_eq!(tree.token(), "mounted-1");
    assert_eq!(tree.names("bin"), ["istio-cni"]);
    assert_eq!(tree.names("net.d"), ["00-broken.conflist", CALICO, "87-podman.conflist"]);
    assert_eq!((running.metric(SUCCESS), running.metric("istio_cni_install_ready")), (1, 1));
    assert!(
        log.take()
            .iter()
            .any(|line| line.contains("several network configurations") && line.contains("87-podman"))
    );
    // Its own writes are changes too, and nothing follows from them.
    sleep(Duration::from_secs(120)).await;
    assert_eq!(running.metric(SUCCESS), 1);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_others_undo_is_repaired_and_not_ready_meanwhile() {
    let tree = Tree::new();
    tree.write(CALICO, LIST);
    let running = tree.start();
    running.ready().await;
    tree.write(CALICO, LIST);
    a_moment().await;
    assert!(running.is_ready() && tree.types(CALICO) == ours(), "the first repair is at once");
    // The next one waits for five seconds.
    std::fs::remove_file(tree.binary()).unwrap();
    a_moment().await;
    assert!(!running.is_ready() && !tree.binary().exists());
    assert_eq!(running.metric("istio_cni_install_ready"), 0);
    running.ready().await;
    assert_eq!(std::fs::read(tree.binary()).unwrap(), b"binary 1");
    sleep(Duration::from_secs(6)).await;
    std::fs::remove_file(tree.net(CALICO)).unwrap();
    a_moment().await;
    assert!(!running.is_ready(), "there is no network");
    tree.write(CALICO, LIST);
    running.ready().await;
    assert_eq!((tree.types(CALICO), running.metric(SUCCESS)), (ours(), 4));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_program_that_rewrites_the_file_all_the_time_is_reported_by_name() {
    let tree = Tree::new();
    tree.write("05-cilium.conflist", LIST);
    let running = tree.start();
    running.ready().await;
    let log = LogCapture::start(|it| it.target().starts_with("isthmus_install"));
    for _ in 0..40 {
        tree.write("05-cilium.conflist", LIST);
        sleep(Duration::from_secs(1)).await;
    }
    let lines = log.take();
    let repairs = lines.iter().filter(|line| line.contains("repairing it")).count();
    let warnings: Vec<_> = lines.iter().filter(|line| line.contains("keeps undoing")).collect();
    assert_eq!(repairs, 5, "{lines:?}");
    assert!((2..=4).contains(&warnings.len()), "{lines:?}");
    let wanted = ["cni.exclusive=false", "05-cilium.conflist", "repairs=6", "ISTIO_OWNED_CNI_CONFIG"];
    assert!(wanted.iter().all(|part| warnings[0].contains(part)), "{}", warnings[0]);
    // One repair per five seconds, and the installation.
    assert!((8..=10).contains(&running.metric(SUCCESS)), "{}", running.metric(SUCCESS));
    running.ready().await;
    assert_eq!(tree.types("05-cilium.conflist"), ours());
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_list_of_its_own_survives_a_program_that_rewrites_the_clusters() {
    let mut tree = Tree::new();
    tree.config.layout.kind = Kind::Owned;
    tree.write("05-cilium.conflist", LIST);
    let running = tree.start();
    running.ready().await;
    for _ in 0..20 {
        tree.write("05-cilium.conflist", LIST);
        sleep(Duration::from_secs(1)).await;
        assert!(running.is_ready());
    }
    assert_eq!(running.metric(SUCCESS), 1);
    assert_eq!((tree.types("02-istio-cni.conflist"), tree.types("05-cilium.conflist")), (ours(), theirs()));
    // A plugin that the cluster's list gets is in ours too.
    tree.write(
        "05-cilium.conflist",
        r#"{"name":"k8s","plugins":[{"type":"cilium-cni"},{"type":"bandwidth"}]}"#,
    );
    a_moment().await;
    running.ready().await;
    assert_eq!(tree.types("02-istio-cni.conflist"), ["cilium-cni", "bandwidth", "istio-cni"]);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_step_that_fails_is_named_counted_and_tried_again() {
    let log = LogCapture::start(|it| *it.level() <= tracing::Level::WARN);
    let tree = Tree::new();
    tree.write(CALICO, LIST);
    // A folder is where the binary belongs.
    std::fs::create_dir_all(tree.binary().join("x")).unwrap();
    let running = tree.start();
    sleep(Duration::from_secs(20)).await;
    let failed = "istio_cni_installs_total{result=\"COPY_BINARIES_FAILURE\"}";
    assert!(running.metric(failed) >= 3, "{}", running.metric(failed));
    assert_eq!((tree.types(CALICO), tree.kubeconfig().exists()), (theirs(), false), "nothing half done");
    assert_eq!(tree.names("bin"), ["istio-cni"]);
    let lines = log.take();
    let about: Vec<_> = lines.iter().filter(|line| line.contains("binary cannot be installed")).collect();
    assert_eq!(about.len(), 1, "{lines:?}");
    assert!(about[0].contains("bin/istio-cni"), "{}", about[0]);
    std::fs::remove_dir_all(tree.binary()).unwrap();
    running.ready().await;
    assert_eq!(tree.types(CALICO), ours());
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_kubeconfig_follows_the_mounted_token_and_stays_ready() {
    let tree = Tree::new();
    tree.write(CALICO, LIST);
    let running = tree.start();
    running.ready().await;
    // As a projected volume is updated.
    std::fs::write(tree.dir.path().join("account/..next"), "mounted-2").unwrap();
    std::fs::rename(tree.dir.path().join("account/..next"), tree.config.service_account_dir.join("token"))
        .unwrap();
    a_moment().await;
    assert!(running.is_ready());
    assert_eq!(tree.token(), "mounted-2");
    std::fs::remove_file(tree.kubeconfig()).unwrap();
    sleep(Duration::from_secs(11)).await;
    assert_eq!(tree.token(), "mounted-2", "the run folder is not watched, but looked at");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_plugins_token_is_not_bound_to_the_pod_where_it_may_be_asked_for() {
    let log = LogCapture::start(|it| it.target().starts_with("isthmus_install"));
    let mut tree = Tree::new();
    tree.config.plugin_account = Some("istio-cni-plugin".to_owned());
    tree.write(CALICO, LIST);
    let request = "POST /api/v1/namespaces/istio-system/serviceaccounts/istio-cni-plugin/token";
    let token = |text: &str| {
        json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
               "spec": {"audiences": []}, "status": {"token": text, "expirationTimestamp": "2100-01-01T00:00:00Z"}})
    };
    tree.answer(request, 403, json!(null));
    let running = tree.start();
    running.ready().await;
    assert_eq!(tree.token(), "mounted-1");
    let about: Vec<_> =
        log.take().into_iter().filter(|line| line.contains("serviceaccounts/token")).collect();
    assert_eq!(about.len(), 1, "{about:?}");
    assert!(about[0].contains("istio-cni-plugin") && about[0].contains("403"), "{}", about[0]);
    tree.answer(request, 201, token("unbound"));
    sleep(Duration::from_secs(3700)).await;
    assert_eq!(tree.token(), "unbound", "the permission came later");
    running.stop().await;

    // An API server that does not answer leaves the token as it is.
    let running = tree.start();
    running.ready().await;
    tree.answer(request, 500, json!(null));
    sleep(Duration::from_secs(120)).await;
    assert_eq!(tree.token(), "unbound");
    running.stop().await;
}

/// A tree with everything installed.
async fn installed() -> Tree {
    let tree = Tree::new();
    tree.write(CALICO, LIST);
    let running = tree.start();
    running.ready().await;
    running.stop().await;
    tree
}

#[tokio::test(start_paused = true)]
async fn at_the_end_everything_stays_for_a_successor() {
    let tree = installed().await;
    tree.answer(
        DAEMON_SET,
        200,
        json!({"kind": "DaemonSet", "apiVersion": "apps/v1", "metadata": {"name": "istio-cni-node"}}),
    );
    tree.answer(NODE, 200, json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n1"}}));
    let kept = |end: End| matches!(end, End::Keep(_));
    assert!(kept(tree.finish().await));
    // No answer is no reason to let pods start in plain text.
    tree.answer(DAEMON_SET, 500, json!(null));
    assert!(kept(tree.finish().await));
    assert!(kept(isthmus_install::finish(tree.config.clone(), None).await));
    assert_eq!(tree.types(CALICO), ours());
    assert!(tree.binary().exists() && tree.kubeconfig().exists());
}

#[tokio::test(start_paused = true)]
async fn at_the_end_of_an_uninstallation_nothing_stays() {
    for (status, deleted, always) in [
        (404, false, false),
        (200, true, false),
        (401, false, false),
        (403, false, false),
        (200, false, true),
    ] {
        let mut tree = installed().await;
        tree.config.always_remove = always;
        let mut set =
            json!({"kind": "DaemonSet", "apiVersion": "apps/v1", "metadata": {"name": "istio-cni-node"}});
        if deleted {
            set["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        tree.answer(DAEMON_SET, status, if status == 200 { set } else { json!(null) });
        tree.answer(NODE, 200, json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n1"}}));
        let end = tree.finish().await;
        assert!(matches!(end, End::Remove(_)), "{status}: {end:?}");
        assert_eq!(
            (tree.types(CALICO), tree.names("net.d")),
            (theirs(), vec![CALICO.to_owned()]),
            "{status}"
        );
        assert!(tree.names("bin").is_empty() && tree.names("run").is_empty(), "{status}");
        // A second end finds nothing to do.
        tree.finish().await;
    }
}
