//! The ZDS client with pods in namespaces of their own.

#[path = "support/harness.rs"]
#[expect(dead_code, reason = "the other tests use more of it")]
mod harness;

use std::process::ExitCode;

use isthmus_kit::lab;
use isthmus_sys::netns::Netns;

use harness::{ZdsHarness, pod};

fn the_same_pod_in_another_namespace_is_restarted() -> anyhow::Result<()> {
    let other = Netns::create()?;
    lab::block_on(async {
        let mut harness = ZdsHarness::new();
        let peer = harness.snapshot(&["a"]).await;
        anyhow::ensure!(peer.add(&pod("a"), other.fd()).await?.is_none());
        anyhow::ensure!(peer.add(&pod("a"), other.fd()).await?.is_none());
        let log = harness.recorder.log();
        let want = ["start a sample/web-1", "stop a Immediate", "start a sample/web-1"];
        anyhow::ensure!(log == want, "{log:?}");
        Ok(())
    })
}

fn main() -> ExitCode {
    lab::main(&lab::tests![the_same_pod_in_another_namespace_is_restarted])
}
