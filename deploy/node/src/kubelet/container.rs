//! One container of a pod: its process, started again whenever it ends, and what is known of it.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use isthmus_rt::backoff::Backoff;
use isthmus_sys::netns::Netns;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::program as exec;

use super::spec::{Container, Pod};
use super::{Node, probe, program};

/// A program that ran at least this long had a good start: the next pause is a short one again.
const GOOD_START: Duration = Duration::from_secs(10);

/// How a pod's programs are to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Running,
    /// Ask, wait this long, then kill.
    Ended(Duration),
}

/// What is known of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    pub(super) pid: Option<u32>,
    pub(super) ready: bool,
    pub(super) restarts: u32,
    /// Kubernetes' reason for not running.
    pub(super) reason: &'static str,
    /// In words.
    pub(super) message: String,
    /// Exit code of a container that will not run again.
    pub(super) done: Option<i32>,
}

/// Where a container runs.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) pod: Pod,
    /// Nothing for the node's own network.
    pub(super) netns: Option<Netns>,
    pub(super) ip: Ipv4Addr,
    /// Working folder, where the volumes are.
    pub(super) root: PathBuf,
    /// The pod's resolv.conf and nsswitch.conf are here.
    pub(super) etc: PathBuf,
}

impl Default for State {
    fn default() -> Self {
        Self {
            pid: None,
            ready: false,
            restarts: 0,
            reason: "ContainerCreating",
            message: String::new(),
            done: None,
        }
    }
}

impl State {
    /// As in `status.containerStatuses`.
    pub(super) fn json(&self, container: &Container) -> Value {
        let state = match (self.pid, self.done) {
            (Some(_), _) => json!({"running": {}}),
            (None, Some(code)) => json!({"terminated": {"exitCode": code, "reason": self.reason}}),
            (None, None) => json!({"waiting": {"reason": self.reason, "message": self.message}}),
        };
        json!({
            "name": container.name, "image": container.image, "imageID": "", "ready": self.ready,
            "started": self.pid.is_some(), "restartCount": self.restarts, "state": state,
        })
    }
}

/// Keeps the container's process running until it is to end, or until it ends and is not to be started again.
pub(super) async fn run(
    node: &Node,
    place: &Place,
    container: &Container,
    mut wanted: watch::Receiver<Wanted>,
    tell: impl Fn(&dyn Fn(&mut State)),
) {
    let mut pause = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    loop {
        let begun = tokio::time::Instant::now();
        let (reason, message) = match start(node, place, container) {
            Err(error) => ("CreateContainerError", format!("{error:#}")),
            Ok(child) => match attend(place, container, child, &mut wanted, &tell).await {
                None => return,
                Some(status) if finished(&place.pod, status) => {
                    return tell(&|state| finish(state, status));
                }
                Some(status) => ("CrashLoopBackOff", format!("{} ended: {status}", container.name)),
            },
        };
        tracing::warn!(pod = place.pod.metadata.name, reason, message, "container does not run");
        tell(&|state| {
            *state =
                State { reason, message: message.clone(), restarts: state.restarts + 1, ..State::default() }
        });
        if begun.elapsed() > GOOD_START {
            pause.reset();
        }
        tokio::select! {
            () = tokio::time::sleep(pause.next_delay()) => {}
            _ = wanted.wait_for(|wanted| *wanted != Wanted::Running) => return,
        }
    }
}

/// Waits until the process ends (its status) or has been ended because that was wanted (nothing).
async fn attend(
    place: &Place,
    container: &Container,
    mut child: Child,
    wanted: &mut watch::Receiver<Wanted>,
    tell: &impl Fn(&dyn Fn(&mut State)),
) -> Option<ExitStatus> {
    let pid = child.id();
    tell(&|state| *state = State { pid, restarts: state.restarts, reason: "", ..State::default() });
    let ready = |ready| tell(&|state| state.ready = ready);
    let grace = tokio::select! {
        status = child.wait() => return status.ok().or_else(|| Some(ExitStatus::default())),
        () = probe::run(container, place.ip, ready) => Duration::ZERO,
        wanted = wanted.wait_for(|wanted| *wanted != Wanted::Running) => match wanted.as_deref() {
            Ok(Wanted::Ended(grace)) => *grace,
            _ => Duration::ZERO,
        },
    };
    signal(pid, Signal::SIGTERM);
    if tokio::time::timeout(grace, child.wait()).await.is_err() {
        signal(pid, Signal::SIGKILL);
        // A killed process ends; an error here means that it was waited for already.
        let _ = child.wait().await;
    }
    tell(&|state| state.pid = None);
    None
}

/// To the container's whole process group.
fn signal(pid: Option<u32>, signal: Signal) {
    if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()) {
        // It may have ended a moment ago.
        let _ = killpg(Pid::from_raw(pid), signal);
    }
}

fn finished(pod: &Pod, status: ExitStatus) -> bool {
    match pod.spec.restart_policy.as_deref() {
        Some("Never") => true,
        Some("OnFailure") => status.success(),
        _ => false,
    }
}

fn finish(state: &mut State, status: ExitStatus) {
    let reason = if status.success() { "Completed" } else { "Error" };
    *state = State {
        done: Some(status.code().unwrap_or(255)),
        reason,
        restarts: state.restarts,
        ..State::default()
    };
}

fn start(node: &Node, place: &Place, container: &Container) -> anyhow::Result<Child> {
    let (pod, options) = (&place.pod, &node.options);
    let bad = anyhow::Error::msg::<String>;
    let variables =
        container.variables(pod, &place.ip.to_string(), &options.address.to_string()).map_err(bad)?;
    let program = program::of(container, pod, &node.programs(), &variables).map_err(bad)?;
    let log = node.folders.logs.join(format!("{}.log", pod.metadata.name));
    let log = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = match &place.netns {
        // The node's own network comes with the node's own view of the files.
        None => Command::new(&program.path),
        Some(_) => {
            let mut command = Command::from(exec::own());
            command.arg("pod-init").arg("--root").arg(&place.root).arg("--hide").arg(&node.folders.netns);
            for name in ["resolv.conf", "nsswitch.conf"] {
                command.arg("--etc").arg(format!("{}={name}", place.etc.join(name).display()));
            }
            command.arg("--").arg(&program.path);
            command
        }
    };
    command.args(&program.args).current_dir(&place.root);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("HOSTNAME", &pod.metadata.name).envs(variables);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.process_group(0).kill_on_drop(true);
    let started = match &place.netns {
        None => command.spawn(),
        Some(netns) => netns.run(|| command.spawn())?,
    };
    started.with_context(|| format!("cannot start {}", program.path.display()))
}
