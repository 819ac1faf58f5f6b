//! What a host's `/proc` says of pods. The playground may run where it can make no cgroups, so the kubelet writes down
//! what they would show: for each sandbox one process, with the pod's cgroup and network namespace.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use isthmus_sys::netns::Netns;
use nix::mount::{MntFlags, umount2};

use super::sandbox::name;

/// Writes the process of a sandbox.
pub(super) fn add(proc: &Path, uid: &str, container: &str, netns: &Netns) -> anyhow::Result<()> {
    let folder = folder(proc, container);
    fs::create_dir_all(folder.join("ns")).with_context(|| format!("cannot make {}", folder.display()))?;
    let id: String = container.bytes().map(|byte| format!("{byte:02x}")).collect();
    fs::write(folder.join("cgroup"), format!("0::/kubepods/pod{uid}/{id}\n"))?;
    let before = (4..22).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
    fs::write(folder.join("stat"), format!("1 (pause) S {before} {} 0\n", number(container)))?;
    name(netns, &folder.join("ns/net"))
}

/// Removes it, if it is there.
pub(super) fn remove(proc: &Path, container: &str) {
    let folder = folder(proc, container);
    // Fails when the sandbox was not made.
    let _ = umount2(&folder.join("ns/net"), MntFlags::MNT_DETACH);
    let _ = fs::remove_dir_all(folder);
}

fn folder(proc: &Path, container: &str) -> PathBuf {
    proc.join(number(container).to_string())
}

/// A process number that only this sandbox has: its first digits are random.
fn number(container: &str) -> u64 {
    container.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
