//! The first process of a world: builds the networks, starts the clusters, waits until everything works, and then either
//! checks it and ends, or stays. All other processes of the world are its descendants and die with it.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::binaries::{self, AgentProgram};
use crate::dir::Dir;
use crate::output;
use crate::plan::{Plan, Topology};
use crate::{pki, topology};
use playground_node::cni_ptp;
use playground_node::program;

mod agents;
mod checks;
mod clusters;
mod process;
mod progress;
mod ready;
mod report;
mod running;
mod startup;
pub(crate) mod table;
mod wire;

use clusters::Clusters;
use progress::Progress;
pub(crate) use running::RunningWorld;

/// What kind of world, and of what.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    #[arg(long, value_enum)]
    mode: Mode,
    #[arg(long, value_enum)]
    topology: Topology,
    #[arg(long)]
    manifests: PathBuf,
    /// Folder of `isthmus` and `isthmus-cni`.
    #[arg(long)]
    binaries: PathBuf,
    /// Clusters and nodes with another program as their agent.
    #[arg(long)]
    agent_program: Vec<AgentProgram>,
}

/// What happens when everything is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// Check it, print a report, end.
    Check,
    /// The same, as JSON.
    CheckJson,
    /// Stay until told to end.
    Stay,
    /// Stay as long as the process that started it.
    Hold,
}

/// How long a world that was killed a moment ago may hold the folder.
const DYING: Duration = Duration::from_secs(5);

impl Mode {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::CheckJson => "check-json",
            Self::Stay => "stay",
            Self::Hold => "hold",
        }
    }
}

/// Runs the world. `die` ends the whole process at once; it is called when the process that started us is gone.
pub(crate) fn run(dir: &Dir, options: &Options, die: fn()) -> anyhow::Result<ExitCode> {
    // Our mounts must go with us, and the process that waits for our end shares the namespace that we were started in.
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    nix::unistd::setsid().context("cannot begin a session")?;
    if options.mode != Mode::Stay {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("cannot tie the world to its parent")?;
        hold_lifeline(die)?;
    }
    let progress = Progress::start();
    let outer_pid = outer_pid()?;
    let lock = dir.lock(DYING)?;
    dir.clean(&lock).with_context(|| format!("cannot empty {}", dir.path().display()))?;
    let plan = Plan::new(options.topology);
    prepare(dir, &plan, &options.binaries)?;
    progress.stage("networks", "two clusters of two nodes, joined by one bridge");
    let namespaces = topology::build(&plan).context("cannot build the networks")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let mut clusters = Clusters::new(dir, &plan, namespaces, outer_pid).await?;
        startup::start(&mut clusters, options, &progress).await?;
        match options.mode {
            Mode::Stay | Mode::Hold => stay(dir, &plan, &mut clusters, &progress).await,
            Mode::Check => check(&clusters, &progress, false).await,
            Mode::CheckJson => check(&clusters, &progress, true).await,
        }
    });
    // Threads that wait for something must not keep the world alive.
    runtime.shutdown_background();
    outcome
}

/// Our number as the outside knows it: /proc is still the outside's.
fn outer_pid() -> anyhow::Result<i32> {
    let link = fs::read_link("/proc/self").context("cannot read /proc/self")?;
    link.to_string_lossy().parse().with_context(|| format!("/proc/self is {}", link.display()))
}

/// Our standard input is a pipe that only our parent holds: its end is the parent's end. The parent-death signal says
/// the same sooner, unless the parent died before it was set.
fn hold_lifeline(die: fn()) -> anyhow::Result<()> {
    let watch = move || {
        // Nothing is ever written; an error means the same as the end.
        let _ = std::io::stdin().read(&mut [0]);
        die();
    };
    std::thread::Builder::new().name("lifeline".to_owned()).spawn(watch).context("cannot start a thread")?;
    Ok(())
}

/// Folders, mounts and keys.
fn prepare(dir: &Dir, plan: &Plan, binaries: &std::path::Path) -> anyhow::Result<()> {
    // Process numbers are new here, and a process must find itself under /proc.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>).context("cannot mount /proc")?;
    let mut folders = vec![dir.netns(), dir.cni_bin()];
    for cluster in &plan.clusters {
        folders.extend([dir.pods(&cluster.name), dir.logs().join(&cluster.name)]);
        folders.extend(cluster.nodes.iter().map(|node| dir.cni_run_dir(&node.name)));
    }
    for folder in folders {
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    mount(Some("none"), &dir.netns(), Some("tmpfs"), MsFlags::empty(), None::<&str>)
        .context("cannot mount the folder of the namespaces")?;
    symlink(binaries.join(binaries::CNI), dir.cni_bin().join(binaries::CNI))?;
    symlink(program::OWN, dir.cni_bin().join(cni_ptp::NAME))?;
    pki::write(dir, plan).context("cannot make keys")?;
    for cluster in &plan.clusters {
        for node in &cluster.nodes {
            // Where istio-cni's plugin looks for it.
            let own = dir.cni_run_dir(&node.name).join("istio-cni-kubeconfig");
            fs::copy(dir.kubeconfig(&cluster.name), own)?;
            fs::write(dir.node(&node.name).join("cni.conflist"), conflist(dir, node).to_string())?;
        }
    }
    Ok(())
}

/// The chain of a node: the basic plugin, then ours as istio-cni's installer would append it.
fn conflist(dir: &Dir, node: &crate::plan::Node) -> serde_json::Value {
    json!({
        "cniVersion": "1.1.0", "name": "playground",
        "plugins": [
            {"type": cni_ptp::NAME, "subnet": node.pods, "state": dir.node(&node.name).join("ipam")},
            {
                "type": binaries::CNI, "plugin_log_level": "info", "ambient_enabled": true,
                "cni_agent_run_dir": dir.cni_run_dir(&node.name), "exclude_namespaces": ["kube-system"],
                "pod_namespace": crate::plan::SYSTEM,
            },
        ],
    })
}

async fn check(clusters: &Clusters<'_>, progress: &Progress, json: bool) -> anyhow::Result<ExitCode> {
    progress.stage("requests", "20 from each sleep");
    let report = checks::run(clusters, progress).await?;
    if json {
        output::line(format_args!("{:#}", serde_json::to_value(&report)?))?;
    } else {
        output::text(report.text())?;
    }
    Ok(if report.pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn stay(
    dir: &Dir,
    plan: &Plan,
    clusters: &mut Clusters<'_>,
    progress: &Progress,
) -> anyhow::Result<ExitCode> {
    let mut ended = signal(SignalKind::terminate())?;
    RunningWorld::new(plan, clusters.outer_pid).write(dir)?;
    progress.stage("up", "end it with `playground down`");
    output::line("try: playground exec east/sleep -- curl -sS helloworld.sample:5000/hello")?;
    for cluster in &plan.clusters {
        output::line(access(&cluster.name))?;
    }
    // This tells `up` that we are ready: it holds the other end of our standard output.
    let log = File::options().create(true).append(true).open(dir.world_log())?;
    nix::unistd::dup2_stdout(&log)?;
    nix::unistd::dup2_stderr(&log)?;
    tokio::select! {
        _ = ended.recv() => {}
        gone = clusters.first_gone() => output::note(format_args!("{gone} has ended")),
    }
    Ok(ExitCode::SUCCESS)
}

/// How a cluster's API server is reached from outside of the world.
pub(crate) fn access(cluster: &str) -> String {
    format!("API server of {cluster}: playground kube {cluster} -- kubectl get pods -A")
}
