//! What needs a second network namespace.

#[path = "support/world.rs"]
#[expect(dead_code, reason = "the other tests use more of it")]
mod world;

use std::process::ExitCode;

use isthmus_kit::lab;
use isthmus_sys::netns::Netns;

use world::{World, pod};

fn the_same_pod_in_another_namespace_is_restarted() -> anyhow::Result<()> {
    let other = Netns::create()?;
    lab::block_on(async {
        let mut world = World::new();
        let peer = world.snapshot(&["a"]).await;
        anyhow::ensure!(peer.add(&pod("a"), other.fd()).await?.is_none());
        anyhow::ensure!(peer.add(&pod("a"), other.fd()).await?.is_none());
        let log = world.recorder.log();
        let want = ["start a sample/web-1", "stop a Now", "start a sample/web-1"];
        anyhow::ensure!(log == want, "{log:?}");
        Ok(())
    })
}

fn main() -> ExitCode {
    lab::main(&lab::tests![the_same_pod_in_another_namespace_is_restarted])
}
