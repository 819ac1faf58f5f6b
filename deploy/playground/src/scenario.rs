//! Scenarios: a world, a change to it, what must be true then, and the way back. Every step is a command that a user can
//! type, and is shown as one. The manifests are under `scenarios/` beside those of the world.

mod all;
mod steps;

use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;

use crate::binaries;
use crate::cli::{ScenarioArgs, WorldArgs};
use crate::dir::Dir;
use crate::launch;
use steps::Steps;

pub(crate) use all::ALL;

/// One scenario.
pub(crate) struct Scenario {
    /// As on the command line, and as its folder.
    pub(crate) name: &'static str,
    /// What it shows.
    pub(crate) about: &'static str,
    play: fn(&mut Steps<'_>) -> anyhow::Result<()>,
}

/// What must be true, and whether it is.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    pass: bool,
    detail: String,
}

#[derive(Debug, Serialize)]
struct Report {
    scenario: &'static str,
    pass: bool,
    checks: Vec<Check>,
}

/// How long a world that was killed a moment ago may take to be gone.
const DYING: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(50);

/// Plays a scenario in a world of its own, or lists what there is.
pub(crate) fn run(dir: &Dir, args: &ScenarioArgs) -> anyhow::Result<ExitCode> {
    let Some(name) = &args.name else {
        for scenario in &ALL {
            println!("{:<20} {}", scenario.name, scenario.about);
        }
        return Ok(ExitCode::SUCCESS);
    };
    let Some(scenario) = ALL.iter().find(|scenario| scenario.name == name) else {
        let names: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
        bail!("there is no scenario {name}; there are: {}", names.join(", "));
    };
    dir.clean(&dir.lock(DYING)?).with_context(|| format!("cannot empty {}", dir.path().display()))?;
    let manifests = launch::manifests(&args.world)?;
    let world = Held::start(dir, &args.world)?;
    let mut steps = Steps::new(dir, &manifests, scenario.name);
    let played = (scenario.play)(&mut steps);
    let checks = steps.checks();
    let pass = played.is_ok() && !checks.is_empty() && checks.iter().all(|check| check.pass);
    let report = Report { scenario: scenario.name, pass, checks };
    world.end()?;
    if args.json {
        println!("{:#}", serde_json::to_value(&report)?);
    } else {
        for check in &report.checks {
            println!("{}  {}: {}", if check.pass { "pass" } else { "FAIL" }, check.name, check.detail);
        }
        println!("{} ({name})", if pass { "everything passed" } else { "something FAILED" });
    }
    played?;
    if !pass {
        eprintln!("logs are in {}", dir.logs().display());
        return Ok(ExitCode::FAILURE);
    }
    dir.clean(&dir.lock(DYING)?).with_context(|| format!("cannot empty {}", dir.path().display()))?;
    Ok(ExitCode::SUCCESS)
}

/// The process that makes a world for its parent: its standard input is the world's, so that the world ends with whoever
/// holds the other end.
pub(crate) fn hold(dir: &Dir, args: &WorldArgs) -> anyhow::Result<ExitCode> {
    let status = launch::held(dir, args)?.wait().context("cannot wait for the world")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A world that lives as long as this.
struct Held(Child);

// === impl Held ===

impl Held {
    fn start(dir: &Dir, args: &WorldArgs) -> anyhow::Result<Self> {
        let mut command = binaries::own();
        command.arg("hold").arg("--dir").arg(dir.path()).args(launch::arguments(args));
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut held = Self(command.spawn().context("cannot start a world")?);
        while !dir.world().is_file() {
            if let Some(status) = held.0.try_wait()? {
                bail!("there is no world: {status}; logs are in {}", dir.logs().display());
            }
            std::thread::sleep(STEP);
        }
        Ok(held)
    }

    fn end(mut self) -> anyhow::Result<()> {
        drop(self.0.stdin.take());
        let deadline = Instant::now() + DYING;
        while self.0.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("the world does not end");
            }
            std::thread::sleep(STEP);
        }
        Ok(())
    }
}

/// This program with a subcommand for a world.
fn command(dir: &Dir, subcommand: &str) -> Command {
    let mut command = binaries::own();
    command.arg(subcommand).arg("--dir").arg(dir.path()).stdin(Stdio::null());
    command
}

fn shown(path: &Path) -> String {
    let workspace = binaries::workspace();
    path.strip_prefix(&workspace).unwrap_or(path).display().to_string()
}
