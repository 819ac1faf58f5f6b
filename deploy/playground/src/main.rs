//! `playground`: two clusters in network namespaces on one Linux box, joined by HBONE, in one command. This file turns
//! arguments into an exit code; every process of the world is this program with another subcommand.

mod binaries;
mod cli;
mod dir;
mod launch;
mod objects;
mod output;
mod pki;
mod plan;
mod scenario;
mod topology;
mod world;

use std::convert::Infallible;
use std::future::Future;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use cli::{Cli, Command};
use dir::Dir;
use launch::Intent;
use playground_k8s::api;
use playground_node::kubelet::Folders;
use playground_node::{cluster_dns, cni_ptp, enter, kube_proxy, kubelet, pod_init};
use playground_workloads::{helloworld, request};

/// How long the last lines of a log may take to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let called = std::env::args_os().next().unwrap_or_default();
    if Path::new(&called).file_name().is_some_and(|name| name == cni_ptp::NAME) {
        return cni_ptp::main();
    }
    // Started again through /proc, a process would be listed as `exe`.
    let _ = nix::sys::prctl::set_name(c"playground");
    run(cli::parse()).unwrap_or_else(|error| {
        output::note(format_args!("playground: {error:#}"));
        ExitCode::FAILURE
    })
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let users = |dir| Dir::of_user(dir);
    let inner = |dir: Option<_>| dir.map(Dir::at).context("--dir is missing");
    match cli.command {
        None => launch::run(&users(cli.dir)?, &cli.run),
        Some(Command::Up(world)) => launch::up(&users(cli.dir)?, &world),
        Some(Command::Exec { pod, command }) => launch::exec(&users(cli.dir)?, &pod, &command),
        Some(Command::Kube { cluster, command }) => launch::kube(&users(cli.dir)?, &cluster, &command),
        Some(Command::Status { json }) => launch::status(&users(cli.dir)?, json),
        Some(Command::Logs { component }) => launch::logs(&users(cli.dir)?, component.as_deref()),
        Some(Command::Apply(to)) => launch::change(&users(cli.dir)?, &to, Intent::Apply),
        Some(Command::Delete(to)) => launch::change(&users(cli.dir)?, &to, Intent::Delete),
        Some(Command::Scenario(args)) => scenario::run(&users(cli.dir)?, &args),
        Some(Command::Hold(world)) => scenario::hold(&users(cli.dir)?, &world),
        Some(Command::Down) => launch::down(&users(cli.dir)?),

        Some(Command::TryEnter) => launch::enter_world().map(|()| ExitCode::SUCCESS),
        Some(Command::World(options)) => world::run(&inner(cli.dir)?, &options, die),
        Some(Command::PodInit(options)) => never(pod_init::run(&options)),
        Some(Command::Enter { pid, command }) => never(enter::run(pid, &command)),
        Some(Command::Request(options)) => {
            let good = block_on(request::run(&options))?;
            Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Some(Command::Apiserver(options)) => serve(api::serve(options, playground_istiod::validate)),
        Some(Command::Istiod(options)) => serve(playground_istiod::run(options)),
        Some(Command::Kubelet(options)) => {
            let dir = inner(cli.dir)?;
            let (pods, logs) = (dir.pods(options.cluster()), dir.logs().join(options.cluster()));
            serve(kubelet::run(Folders { pods, logs, netns: dir.netns() }, options))
        }
        Some(Command::KubeProxy(options)) => serve(kube_proxy::run(options)),
        Some(Command::ClusterDns(options)) => serve(cluster_dns::run(options)),
        Some(Command::Helloworld(options)) => serve(helloworld::run(options)),
        Some(Command::Sleep) => serve(std::future::pending()),
    }
}

/// Runs a process of the world, with a log on its standard output.
fn serve(process: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<ExitCode> {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned());
    let log = isthmus_rt::log::init(isthmus_rt::log::Format::Text, &filter)?;
    let ended = block_on(process);
    // The last lines say why the process ended. A reader that takes none of them misses them.
    let _ = log.flush(LAST_LINES);
    ended.map(|()| ExitCode::SUCCESS)
}

/// One thread is enough for each process: there are many.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

fn never(outcome: anyhow::Result<Infallible>) -> anyhow::Result<ExitCode> {
    match outcome? {}
}

#[expect(
    clippy::exit,
    reason = "the world must not outlive the process that started it, whatever its other threads do"
)]
fn die() {
    std::process::exit(1)
}
