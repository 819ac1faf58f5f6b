//! What benchmarks run on: generated meshes of any size, the same in every run, namespaces of their own to start
//! programs in, and agents on two nodes with what they need around them.

use std::process::{Command, ExitCode};

use anyhow::Context as _;
use isthmus_kit::binaries;
use isthmus_sys::userns;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

pub mod agents;
pub mod double;
pub mod mesh;
pub mod new_connections;
pub mod proc;

/// Runs a benchmark in user, network and process namespaces of its own, as root there, with these programs of the
/// workspace built before. Everything that it starts ends with it. Must be called before any thread runs.
///
/// # Errors
/// When the kernel refuses, or the benchmark fails.
pub fn isolated(
    programs: &[&str],
    measure: impl FnOnce() -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    // The process that makes the namespaces is not in the new process namespace; its child is the first one there.
    if std::process::id() == 1 {
        set_pdeathsig(Signal::SIGKILL)?;
        // /proc with the PIDs of this namespace.
        mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>)?;
        return measure();
    }
    // Built while there is still a network that a package could come from, and not again inside.
    let built = programs.iter().map(|program| binaries::path(program)).collect::<Vec<_>>();
    userns::enter()?;
    unshare(CloneFlags::CLONE_NEWPID)?;
    let mut again = Command::new(std::env::current_exe()?);
    again.args(std::env::args_os().skip(1));
    if let Some(program) = built.first() {
        again.env("ISTHMUS_BIN_DIR", program.parent().context("a program is in a folder")?);
    }
    let status = again.status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The middle one of some figures.
#[must_use]
pub fn median<T: PartialOrd + Copy>(figures: &[T]) -> Option<T> {
    let mut figures = figures.to_vec();
    figures.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    figures.get(figures.len() / 2).copied()
}
