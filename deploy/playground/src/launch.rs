//! The side that the user sees: starts the world's first process in namespaces of its own and waits for it.
//!
//! Everything of a world is a descendant of that process, which is number 1 of its own process namespace: when it ends,
//! for whatever reason, the kernel kills the rest, and with the last process the network namespaces and mounts are
//! gone. In a run it dies with us, even when we are killed: by its parent-death signal and because its standard input
//! is a pipe that only we hold.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, unshare};

use crate::binaries;
use crate::dir::Dir;
use crate::output;
use crate::plan::Plan;
use crate::world::Mode;
use playground_k8s::manifest;
use playground_node::program;

mod args;
mod change;
mod inside;
mod show;

pub(crate) use args::{RunArgs, WorldArgs};
pub(crate) use change::{ChangeArgs, Intent, change};
pub(crate) use inside::{down, exec, kube};
pub(crate) use show::{logs, status};

/// How long a world that was killed a moment ago may take to be gone.
const DYING: Duration = Duration::from_secs(5);

/// Up, check, down.
pub(crate) fn run(dir: &Dir, args: &RunArgs) -> anyhow::Result<ExitCode> {
    let mode = if args.json { Mode::CheckJson } else { Mode::Check };
    let mut world = start(dir, &args.world, mode)?;
    // Waiting closes what is left in the child's standard input; this end must stay open until the world has ended.
    let lifeline = world.stdin.take();
    let status = world.wait().context("cannot wait for the world")?;
    drop(lifeline);
    let code = code(status);
    if code == 0 {
        // Logs are worth keeping only when something went wrong.
        dir.clean(&dir.lock(DYING)?).with_context(|| format!("cannot empty {}", dir.path().display()))?;
    } else {
        output::note(format_args!("logs are in {}", dir.logs().display()));
    }
    Ok(ExitCode::from(code))
}

/// Builds a world that stays. It is ready when its first process lets go of the pipe and still runs.
pub(crate) fn up(dir: &Dir, args: &WorldArgs) -> anyhow::Result<ExitCode> {
    let mut world = start(dir, args, Mode::Stay)?;
    if let Some(out) = world.stdout.take() {
        for line in BufReader::new(out).lines() {
            output::line(line?)?;
        }
    }
    match world.try_wait()? {
        None if dir.world().is_file() => Ok(ExitCode::SUCCESS),
        None => Ok(ExitCode::from(code(world.wait()?))),
        Some(status) => Ok(ExitCode::from(code(status))),
    }
}

/// Begins a world that lives as long as our standard input is open, and we.
pub(crate) fn held(dir: &Dir, args: &WorldArgs) -> anyhow::Result<Child> {
    start(dir, args, Mode::Hold)
}

/// The folder of the manifests.
pub(crate) fn manifests(args: &WorldArgs) -> anyhow::Result<PathBuf> {
    let folder = args.manifests.clone().unwrap_or_else(|| binaries::workspace().join("deploy/manifests"));
    fs::canonicalize(&folder).with_context(|| format!("no manifests in {}", folder.display()))
}

/// What makes a world like this, as arguments again.
pub(crate) fn arguments(args: &WorldArgs) -> Vec<OsString> {
    let topology = clap::ValueEnum::to_possible_value(&args.topology);
    let topology = topology.map(|value| value.get_name().to_owned()).unwrap_or_default();
    let mut all: Vec<OsString> = vec!["--topology".into(), topology.into()];
    if let Some(manifests) = &args.manifests {
        all.extend(["--manifests".into(), manifests.into()]);
    }
    all.extend(args.agent_program.iter().map(|program| format!("--agent-program={program}").into()));
    all
}

fn start(dir: &Dir, args: &WorldArgs, mode: Mode) -> anyhow::Result<Child> {
    // Fail before the build, which may take minutes, if the world cannot be had anyway.
    drop(dir.lock(DYING)?);
    let manifests = manifests(args)?;
    let plan = Plan::new(args.topology);
    for cluster in &plan.clusters {
        manifest::for_cluster(&manifests, &cluster.name)?;
    }
    if let Some(lost) = args.agent_program.iter().find(|program| !plan.has_place(&program.place)) {
        bail!("--agent-program {lost}: there is no cluster or node {}", lost.place);
    }
    can_enter()?;
    output::note("[  0.0s] programs: building what has changed");
    let binaries = binaries::folder()?;
    enter_world()?;
    spawn(dir, args, mode, &manifests, &binaries)
}

/// Whether this system lets us make a world, tried by a process that has no other purpose: entering cannot be undone.
fn can_enter() -> anyhow::Result<()> {
    let tried = program::own().arg("try-enter").stdin(Stdio::null()).output();
    let tried = tried.context("cannot try to make a world")?;
    if !tried.status.success() {
        let said = String::from_utf8_lossy(&tried.stderr);
        bail!("{}", said.trim().trim_start_matches("playground: "));
    }
    Ok(())
}

/// Makes the namespaces of a world. Only before any thread starts.
pub(crate) fn enter_world() -> anyhow::Result<()> {
    isthmus_sys::userns::enter().context("cannot make a world of namespaces")?;
    unshare(CloneFlags::CLONE_NEWPID).context("cannot make a process namespace")
}

fn spawn(
    dir: &Dir,
    args: &WorldArgs,
    mode: Mode,
    manifests: &Path,
    binaries: &Path,
) -> anyhow::Result<Child> {
    let topology =
        clap::ValueEnum::to_possible_value(&args.topology).map(|value| value.get_name().to_owned());
    let mut command = program::own();
    command.arg("world").arg("--dir").arg(dir.path());
    command.args(["--mode", mode.name(), "--topology", &topology.unwrap_or_default()]);
    command.arg("--manifests").arg(manifests).arg("--binaries").arg(binaries);
    command.args(args.agent_program.iter().map(|program| format!("--agent-program={program}")));
    match mode {
        Mode::Stay => command.stdin(Stdio::null()).stdout(Stdio::piped()),
        // The world lives as long as the holder of the other end of our standard input.
        Mode::Hold => command.stdin(Stdio::inherit()).stdout(Stdio::null()),
        Mode::Check | Mode::CheckJson => command.stdin(Stdio::piped()).stdout(Stdio::inherit()),
    };
    command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::OutOfMemory => {
            anyhow::anyhow!("no process can be started in the new process namespace: {error}")
        }
        _ => anyhow::anyhow!("cannot start the world's first process: {error}"),
    })
}

fn code(status: ExitStatus) -> u8 {
    // Killed by a signal: no code.
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}
