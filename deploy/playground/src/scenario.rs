//! Scenarios: a world, a change to it, what must be true then, and the way back. Every step is a command that a user can
//! type, and is shown as one. The manifests are under `scenarios/` beside those of the world.

mod all;
mod flood;
mod monitoring;
mod steps;

use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;

use crate::binaries;
use crate::dir::Dir;
use crate::launch::{self, WorldArgs};
use crate::output;
use playground_node::program;
use steps::Steps;

pub(crate) use all::ALL;

/// A scenario, and the world that it is played in.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ScenarioArgs {
    /// Which one; all of them, one after the other, when none is named.
    pub(crate) name: Option<String>,
    /// Only lists them.
    #[arg(long, conflicts_with = "name")]
    pub(crate) list: bool,
    #[command(flatten)]
    pub(crate) world: WorldArgs,
    /// Prints the report as JSON; the steps still go to standard error.
    #[arg(long)]
    pub(crate) json: bool,
}

/// One scenario.
pub(crate) struct Scenario {
    /// As on the command line, and as its folder.
    pub(crate) name: &'static str,
    /// What it shows.
    pub(crate) about: &'static str,
    play: fn(&mut Steps<'_>) -> anyhow::Result<()>,
    /// A program that is not ours and must be there; the name of Debian's package for it is the same.
    needs: Option<&'static str>,
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
    /// Why it could not be played to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// How long a world that was killed a moment ago may take to be gone.
const DYING: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(50);

/// Plays a scenario in a world of its own, or all of them one after the other, or lists what there is.
pub(crate) fn run(dir: &Dir, args: &ScenarioArgs) -> anyhow::Result<ExitCode> {
    if args.list {
        for scenario in &ALL {
            output::line(format_args!("{:<20} {}", scenario.name, scenario.about))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let chosen: Vec<&Scenario> =
        ALL.iter().filter(|one| args.name.as_deref().is_none_or(|name| one.name == name)).collect();
    if chosen.is_empty() {
        let names: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
        bail!(
            "there is no scenario {}; there are: {}",
            args.name.as_deref().unwrap_or_default(),
            names.join(", ")
        );
    }
    let mut reports = Vec::new();
    for scenario in chosen {
        let report = play(dir, args, scenario)?;
        if !args.json {
            report.print()?;
        }
        reports.push(report);
    }
    if args.json {
        // One that was named is told as itself.
        let told = match &reports[..] {
            [report] if args.name.is_some() => serde_json::to_value(report)?,
            all => serde_json::to_value(all)?,
        };
        output::line(format_args!("{told:#}"))?;
    }
    let failed: Vec<_> = reports.iter().filter(|report| !report.pass).collect();
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    if args.name.is_none() {
        let names: Vec<_> = failed.iter().map(|report| report.scenario).collect();
        output::note(format_args!("{} of {} failed: {}", failed.len(), reports.len(), names.join(", ")));
    }
    Ok(ExitCode::FAILURE)
}

/// A world, the scenario, and the world's end. The logs stay when something went wrong, until the next world. Without a
/// program that it needs a scenario has failed: what it would have shown is not known.
fn play(dir: &Dir, args: &ScenarioArgs, scenario: &Scenario) -> anyhow::Result<Report> {
    if let Some(program) = scenario.needs.filter(|program| program::in_path(program).is_none()) {
        let error = format!("there is no program {program} here; `apt-get install {program}` would bring it");
        return Ok(Report { scenario: scenario.name, pass: false, checks: Vec::new(), error: Some(error) });
    }
    dir.clean(&dir.lock(DYING)?).with_context(|| format!("cannot empty {}", dir.path().display()))?;
    let manifests = launch::manifests(&args.world)?;
    let world = ScenarioWorld::start(dir, &args.world)?;
    let mut steps = Steps::new(dir, &manifests, scenario.name);
    let played = (scenario.play)(&mut steps);
    let checks = steps.checks();
    let pass = played.is_ok() && !checks.is_empty() && checks.iter().all(|check| check.pass);
    let error = played.err().map(|error| format!("{error:#}"));
    let report = Report { scenario: scenario.name, pass, checks, error };
    world.end()?;
    if report.pass {
        dir.clean(&dir.lock(DYING)?).with_context(|| format!("cannot empty {}", dir.path().display()))?;
    } else {
        output::note(format_args!("logs of {} are in {}", scenario.name, dir.logs().display()));
    }
    Ok(report)
}

/// The process that makes a world for its parent: its standard input is the world's, so that the world ends with
/// the holder of the other end.
pub(crate) fn hold(dir: &Dir, args: &WorldArgs) -> anyhow::Result<ExitCode> {
    let status = launch::held(dir, args)?.wait().context("cannot wait for the world")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A world that lives as long as this.
struct ScenarioWorld(Child);

// === impl Report ===

impl Report {
    fn print(&self) -> io::Result<()> {
        for check in &self.checks {
            let outcome = if check.pass { "pass" } else { "FAIL" };
            output::line(format_args!("{outcome}  {}: {}", check.name, check.detail))?;
        }
        if let Some(error) = &self.error {
            output::line(format_args!("FAIL  it could not be played to its end: {error}"))?;
        }
        let outcome = if self.pass { "everything passed" } else { "something FAILED" };
        output::line(format_args!("{outcome} ({})", self.scenario))
    }
}

// === impl ScenarioWorld ===

impl ScenarioWorld {
    fn start(dir: &Dir, args: &WorldArgs) -> anyhow::Result<Self> {
        let mut command = program::own();
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
    let mut command = program::own();
    command.arg(subcommand).arg("--dir").arg(dir.path()).stdin(Stdio::null());
    command
}

fn shown(path: &Path) -> String {
    let workspace = binaries::workspace();
    path.strip_prefix(&workspace).unwrap_or(path).display().to_string()
}
