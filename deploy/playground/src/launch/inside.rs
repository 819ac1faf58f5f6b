//! Commands that reach into a running world from outside: entering a pod, ending everything.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::dir::Dir;
use crate::output;
use crate::world::RunningWorld;
use playground_node::kubelet::Record;

/// How long the world may take to end by itself.
const ENDING: Duration = Duration::from_secs(5);

/// Runs a command in a pod and returns its exit code.
pub(crate) fn exec(dir: &Dir, pod: &str, command: &[String]) -> anyhow::Result<ExitCode> {
    let world = RunningWorld::read(dir)?;
    let record = Record::find(&dir.all_pods(), pod)?;
    let inner =
        record.pid.with_context(|| format!("pod {} does not run: {}", record.name, record.message))?;
    let pid = outer_pid(world.pid, inner)?;
    enter(pid, &["user", "pid", "net", "mnt"])?;
    let [program, args @ ..] = command else { bail!("no command was given") };
    let mut child = Command::new(program);
    child.args(args).current_dir("/").env("HOSTNAME", &record.name);
    let status = child.status().with_context(|| format!("cannot run {program} in {}", record.name))?;
    Ok(ExitCode::from(super::code(status)))
}

/// Runs a command on the world's own network, where the API servers of its clusters are, as an administrator of one of them;
/// returns its exit code.
pub(crate) fn kube(dir: &Dir, cluster: &str, command: &[String]) -> anyhow::Result<ExitCode> {
    let world = RunningWorld::read(dir)?;
    if !world.clusters.iter().any(|known| known == cluster) {
        bail!("there is no cluster {cluster}; there are: {}", world.clusters.join(", "));
    }
    let [program, args @ ..] = command else { bail!("no command was given") };
    let kubeconfig = std::path::absolute(dir.kubeconfig(cluster))?;
    enter(world.pid, &["user", "net"])?;
    let status = Command::new(program).args(args).env("KUBECONFIG", kubeconfig).status();
    let status = status.with_context(|| format!("cannot run {program}"))?;
    Ok(ExitCode::from(super::code(status)))
}

/// Joins namespaces of a process. Only before any thread starts.
pub(super) fn enter(pid: i32, kinds: &[&str]) -> anyhow::Result<()> {
    let all = [
        ("user", CloneFlags::CLONE_NEWUSER),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("net", CloneFlags::CLONE_NEWNET),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    // All are opened first: after the mount namespace is entered, /proc is another one.
    let mut namespaces = Vec::new();
    for (name, kind) in all.into_iter().filter(|(name, _)| kinds.contains(name)) {
        let path = format!("/proc/{pid}/ns/{name}");
        let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        // Joining the user namespace that one is in already is refused.
        if inode(&path)? != inode(&format!("/proc/self/ns/{name}"))? {
            namespaces.push((name, kind, file));
        }
    }
    for (name, kind, file) in namespaces {
        setns(file, kind).with_context(|| format!("cannot enter the {name} namespace of the pod"))?;
    }
    Ok(())
}

/// Ends the world; it is no error when none is up.
pub(crate) fn down(dir: &Dir) -> anyhow::Result<ExitCode> {
    let Ok(world) = RunningWorld::read(dir) else {
        output::line(format_args!("no world is up in {}", dir.path().display()))?;
        return Ok(ExitCode::SUCCESS);
    };
    let pid = Pid::from_raw(world.pid);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        match kill(pid, signal) {
            Ok(()) if gone(pid) => break,
            Err(Errno::ESRCH) => break,
            Ok(()) => {}
            Err(errno) => bail!("cannot end process {pid}: {errno}"),
        }
    }
    dir.clean(&dir.lock(ENDING)?).with_context(|| format!("cannot empty {}", dir.path().display()))?;
    output::line(format_args!("the world in {} is gone", dir.path().display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Whether the process ended in time. One that ended and was not yet waited for counts: the kernel lets the first
/// process of a process namespace become that only when all others are gone.
fn gone(pid: Pid) -> bool {
    let deadline = Instant::now() + ENDING;
    while Instant::now() < deadline {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit(')').next().and_then(|rest| rest.trim().chars().next());
        if matches!(state, None | Some('Z' | 'X')) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

/// The number by which we know the process that is `inner` in the process namespace of the world.
pub(super) fn outer_pid(world: i32, inner: u32) -> anyhow::Result<i32> {
    let wanted = inode(&format!("/proc/{world}/ns/pid"))?;
    let found = fs::read_dir("/proc")?.filter_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let innermost =
            status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().last()?;
        (innermost.parse() == Ok(inner) && inode(&format!("/proc/{pid}/ns/pid")).ok()? == wanted)
            .then_some(pid)
    });
    found.into_iter().next().with_context(|| format!("process {inner} of the world is gone"))
}

fn inode(path: &str) -> anyhow::Result<u64> {
    Ok(fs::metadata(PathBuf::from(path)).with_context(|| format!("cannot read {path}"))?.ino())
}
