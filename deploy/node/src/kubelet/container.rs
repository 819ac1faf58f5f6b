//! One container of a pod: its process, started again whenever it ends, and its status.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use isthmus_rt::backoff::Backoff;
use isthmus_sys::netns::Netns;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, Pod,
};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::program as exec;

use super::spec::{ContainerExt, PodExt};
use super::{Node, probe, program};

/// A program that ran at least this long had a good start: the next pause is a short one again.
const GOOD_START: Duration = Duration::from_secs(10);

/// Whether a pod's programs are to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DesiredState {
    Running,
    /// TERM, and after this long KILL.
    Stopped(Duration),
}

/// What the kubelet knows of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RuntimeStatus {
    pub(super) pid: Option<u32>,
    pub(super) ready: bool,
    pub(super) restarts: i32,
    /// Why it does not run, as a reason of Kubernetes.
    pub(super) reason: &'static str,
    /// In words.
    pub(super) message: String,
    /// Exit code of a container that will not run again.
    pub(super) done: Option<i32>,
}

/// Where the containers of a pod run.
#[derive(Debug)]
pub(super) struct PodEnvironment {
    pub(super) pod: Pod,
    /// `None` for the node's own network.
    pub(super) netns: Option<Netns>,
    pub(super) ip: Ipv4Addr,
    /// Working folder, where the volumes are.
    pub(super) root: PathBuf,
    /// The pod's resolv.conf and nsswitch.conf are here.
    pub(super) etc: PathBuf,
}

impl Default for RuntimeStatus {
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

impl RuntimeStatus {
    /// The same for `status.containerStatuses`.
    pub(super) fn report(&self, container: &Container) -> ContainerStatus {
        let mut state = ContainerState::default();
        match (self.pid, self.done) {
            (Some(_), _) => state.running = Some(ContainerStateRunning::default()),
            (None, Some(exit_code)) => {
                let reason = Some(self.reason.to_owned());
                state.terminated = Some(ContainerStateTerminated {
                    exit_code,
                    reason,
                    ..ContainerStateTerminated::default()
                });
            }
            (None, None) => {
                let (reason, message) = (Some(self.reason.to_owned()), Some(self.message.clone()));
                state.waiting = Some(ContainerStateWaiting { reason, message });
            }
        }
        ContainerStatus {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            ready: self.ready,
            started: Some(self.pid.is_some()),
            restart_count: self.restarts,
            state: Some(state),
            ..ContainerStatus::default()
        }
    }
}

/// Keeps the container's process running until it is to end, or until it ends and is not to be started again.
pub(super) async fn run(
    node: &Node,
    environment: &PodEnvironment,
    container: &Container,
    mut desired: watch::Receiver<DesiredState>,
    update: impl Fn(&dyn Fn(&mut RuntimeStatus)),
) {
    let mut pause = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    loop {
        let begun = tokio::time::Instant::now();
        let (reason, message) = match start(node, environment, container) {
            Err(error) => ("CreateContainerError", format!("{error:#}")),
            Ok(child) => match attend(environment, container, child, &mut desired, &update).await {
                None => return,
                Some(status) if finished(&environment.pod, status) => {
                    return update(&|state| finish(state, status));
                }
                Some(status) => ("CrashLoopBackOff", format!("{} ended: {status}", container.name)),
            },
        };
        tracing::warn!(
            pod = environment.pod.name(),
            reason,
            message,
            "container is not running, starting it again after a pause"
        );
        update(&|state| {
            *state = RuntimeStatus {
                reason,
                message: message.clone(),
                restarts: state.restarts + 1,
                ..RuntimeStatus::default()
            }
        });
        if begun.elapsed() > GOOD_START {
            pause.reset();
        }
        tokio::select! {
            () = tokio::time::sleep(pause.next_delay()) => {}
            _ = desired.wait_for(|desired| *desired != DesiredState::Running) => return,
        }
    }
}

/// Waits until the process ends (its status) or has been ended because that was desired (nothing).
async fn attend(
    environment: &PodEnvironment,
    container: &Container,
    mut child: Child,
    desired: &mut watch::Receiver<DesiredState>,
    update: &impl Fn(&dyn Fn(&mut RuntimeStatus)),
) -> Option<ExitStatus> {
    let pid = child.id();
    update(&|state| {
        *state = RuntimeStatus { pid, restarts: state.restarts, reason: "", ..RuntimeStatus::default() }
    });
    let ready = |ready| update(&|state| state.ready = ready);
    let grace = tokio::select! {
        status = child.wait() => return status.ok().or_else(|| Some(ExitStatus::default())),
        () = probe::run(container, environment.ip, ready) => Duration::ZERO,
        desired = desired.wait_for(|desired| *desired != DesiredState::Running) => match desired.as_deref() {
            Ok(DesiredState::Stopped(grace)) => *grace,
            _ => Duration::ZERO,
        },
    };
    signal(pid, Signal::SIGTERM);
    if tokio::time::timeout(grace, child.wait()).await.is_err() {
        signal(pid, Signal::SIGKILL);
        // A killed process ends; an error here means that it was waited for already.
        let _ = child.wait().await;
    }
    update(&|state| state.pid = None);
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
    match pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) {
        Some("Never") => true,
        Some("OnFailure") => status.success(),
        _ => false,
    }
}

fn finish(state: &mut RuntimeStatus, status: ExitStatus) {
    let reason = if status.success() { "Completed" } else { "Error" };
    *state = RuntimeStatus {
        done: Some(status.code().unwrap_or(255)),
        reason,
        restarts: state.restarts,
        ..RuntimeStatus::default()
    };
}

fn start(node: &Node, environment: &PodEnvironment, container: &Container) -> anyhow::Result<Child> {
    let (pod, options) = (&environment.pod, &node.options);
    let bad = anyhow::Error::msg::<String>;
    let variables =
        container.variables(pod, &environment.ip.to_string(), &options.address.to_string()).map_err(bad)?;
    let program = program::of(container, pod, &node.programs(), &variables).map_err(bad)?;
    let log = node.folders.logs.join(format!("{}.log", pod.name()));
    let log = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = match &environment.netns {
        // The node's own network comes with the node's own view of the files.
        None => Command::new(&program.path),
        Some(_) => {
            let mut command = Command::from(exec::own());
            command
                .arg("pod-init")
                .arg("--root")
                .arg(&environment.root)
                .arg("--hide")
                .arg(&node.folders.netns);
            for name in ["resolv.conf", "nsswitch.conf"] {
                command.arg("--etc").arg(format!("{}={name}", environment.etc.join(name).display()));
            }
            command.arg("--").arg(&program.path);
            command
        }
    };
    command.args(&program.args).current_dir(&environment.root);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("HOSTNAME", pod.name()).envs(variables);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.process_group(0).kill_on_drop(true);
    let started = match &environment.netns {
        None => command.spawn(),
        Some(netns) => netns.run(|| command.spawn())?,
    };
    started.with_context(|| format!("cannot start {}", program.path.display()))
}
