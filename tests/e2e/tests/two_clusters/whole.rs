//! A whole run of the playground in an empty PID namespace: afterwards there is no process and no network namespace that
//! was not there before.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

use super::playground::{playground_command, succeeded, turn};

/// Longest time for the kernel to end a playground whose first process was killed.
const DYING: Duration = Duration::from_secs(20);

/// What `ps` and `lsns -t net` would list.
#[derive(Debug, PartialEq, Eq)]
struct There {
    processes: BTreeSet<i32>,
    networks: BTreeSet<String>,
}

pub(crate) fn runs_leave_nothing_behind_even_when_killed() -> Result<()> {
    let _turn = turn()?;
    let dir = tempfile::tempdir()?;
    let before = There::now()?;
    ensure!(before.processes.iter().eq([&1]), "not a process namespace of our own: {before:?}");
    run(dir.path(), "multi-primary")?;
    ensure!(There::now()? == before, "after a run: {:?}, before: {before:?}", There::now()?);
    run(dir.path(), "primary-remote")?;
    ensure!(There::now()? == before, "after a second run: {:?}, before: {before:?}", There::now()?);
    for stage in ["networks", "nodes", "pods", "requests"] {
        let at_most = kill_at(dir.path(), stage)?;
        ensure!(at_most.networks.len() > before.networks.len(), "{stage}: nothing was there: {at_most:?}");
        before.comes_back().with_context(|| format!("killed at {stage:?}"))?;
    }
    run(dir.path(), "multi-primary")?;
    ensure!(There::now()? == before, "after the last run: {:?}, before: {before:?}", There::now()?);
    let left: Vec<_> =
        fs::read_dir(dir.path())?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
    ensure!(left == ["lock"], "files are left: {left:?}");
    Ok(())
}

/// A whole run: exit code 0, and each `sleep` was answered by both versions and always.
fn run(dir: &Path, topology: &str) -> Result<()> {
    let output = playground_command(dir, None)?.args(["--json", "--topology", topology]).output()?;
    let report: Value = serde_json::from_str(&succeeded(topology, &output)?)?;
    ensure!(report["pass"] == true && report["topology"] == topology, "{report:#}");
    for cluster in ["east", "west"] {
        let name = format!("{cluster}/sleep");
        let all = report["requests"].as_array().context("requests")?.iter();
        let of = |requests: &&Value| requests["from"].as_str().is_some_and(|from| from.starts_with(&name));
        let requests = all.clone().find(of).with_context(|| format!("no requests of {name}"))?;
        ensure!(requests["sent"] == 20 && requests["failed"] == 0, "{topology}: {requests:#}");
        let answers = requests["answers"].as_object().context("answers")?;
        for version in ["Hello version: v1,", "Hello version: v2,"] {
            ensure!(answers.keys().any(|answer| answer.starts_with(version)), "{topology}: {requests:#}");
        }
    }
    Ok(())
}

/// Starts a run and kills its first process, the one that the user started, at the beginning of a stage; returns what
/// existed at that moment.
fn kill_at(dir: &Path, stage: &str) -> Result<There> {
    let mut run = playground_command(dir, None)?.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let said = BufReader::new(run.stderr.take().context("stderr")?);
    let wanted = format!("] {stage}:");
    let mut lines = Vec::new();
    for line in said.lines() {
        lines.push(line?);
        if lines.last().is_some_and(|line| line.contains(&wanted)) {
            let there = until_networks()?;
            run.kill()?;
            let status = run.wait()?;
            ensure!(status.signal() == Some(Signal::SIGKILL as i32), "it had ended: {status}");
            return Ok(there);
        }
    }
    bail!("no stage {stage}: {lines:?}")
}

/// The first namespaces appear shortly after the stage is announced.
fn until_networks() -> Result<There> {
    let deadline = Instant::now() + DYING;
    loop {
        let there = There::now()?;
        if there.networks.len() > 2 || Instant::now() > deadline {
            return Ok(there);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl There {
    fn now() -> Result<Self> {
        let mut there = Self { processes: BTreeSet::new(), networks: BTreeSet::new() };
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            there.processes.insert(pid);
            // A process may exit at any moment, and has no namespace then.
            let network = fs::read_link(entry.path().join("ns/net"));
            there.networks.extend(network.map(|link| link.to_string_lossy().into_owned()));
        }
        Ok(there)
    }

    /// Waits until everything is as before. This process is PID 1 of the namespace, so it must reap orphans.
    fn comes_back(&self) -> Result<()> {
        let deadline = Instant::now() + DYING;
        loop {
            while let Ok(status) = waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                if status == WaitStatus::StillAlive {
                    break;
                }
            }
            let now = Self::now()?;
            if now == *self {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "there: {now:?}, before: {self:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
