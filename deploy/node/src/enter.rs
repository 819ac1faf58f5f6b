//! Becoming a command inside a pod, for processes of the world.

use std::fs::File;
use std::os::unix::process::CommandExt;

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};

use crate::program;

/// Joins the network and mount namespaces of a process and becomes the command; returns only when that fails. Only
/// before any thread starts.
pub fn run(pid: u32, command: &[String]) -> anyhow::Result<std::convert::Infallible> {
    let open = |name: &str| {
        let path = format!("/proc/{pid}/ns/{name}");
        File::open(&path).with_context(|| format!("cannot open {path}"))
    };
    let (net, mnt) = (open("net")?, open("mnt")?);
    setns(net, CloneFlags::CLONE_NEWNET).context("cannot enter the pod's network")?;
    setns(mnt, CloneFlags::CLONE_NEWNS).context("cannot enter the pod's mounts")?;
    let [program, args @ ..] = command else { bail!("no command was given") };
    let error = program::command(program).args(args).current_dir("/").exec();
    Err(error).with_context(|| format!("cannot run {program}"))
}
