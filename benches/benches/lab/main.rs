//! The whole table of the data path as one command: direct, our agents and, with `ISTHMUS_UPSTREAM_ZTUNNEL`, ztunnels,
//! interleaved round by round, medians and ratios, and whether the goals are reached. `benches/README.md` lists the
//! arguments.

mod bulk;
mod goals;
mod idle;
mod measure;
mod meter;
mod options;
mod requests;
mod server;
mod syscalls;
mod table;
mod tools;
mod trips;
mod worlds;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use isthmus_benches::agents::{self, Road, Subject};
use isthmus_benches::isolated;
use isthmus_sys::limits;

use measure::{ALL, Measurement};
use options::Options;
use syscalls::Syscalls;
use table::Table;
use worlds::World;

fn main() -> Result<ExitCode> {
    let options = Options::parse(std::env::args().skip(1))?;
    isolated(&["isthmus"], || lab(&options))
}

fn lab(options: &Options) -> Result<ExitCode> {
    let files = limits::raise_nofile()?;
    let subjects = agents::subjects()?;
    let mut all = Vec::new();
    for congestion in options.congestion.iter().map(Option::as_deref) {
        let mut tables = Vec::new();
        for road in [Road::Hbone, Road::DoubleHbone] {
            let mut wanted: Vec<_> =
                ALL.iter().filter(|all| all.road == road && options.wants(all.group)).collect();
            wanted.retain(|wanted| match wanted.missing_tool() {
                Some(tool) => {
                    println!("{tool} is not installed: no figure for {}", wanted.name);
                    false
                }
                None => true,
            });
            if !wanted.is_empty() {
                tables.extend(rounds(options, &subjects, (road, congestion), &wanted)?);
            }
        }
        if options.wants("idle") {
            tables.push(idle_table(&subjects, congestion, files)?);
        }
        all.push(tables);
    }
    for tables in &all {
        tables.iter().for_each(|table| println!("{table}"));
        print!("{}", goals::summary(tables));
    }
    Ok(ExitCode::SUCCESS)
}

/// Every measurement on every subject, round by round; all agents run from the start, and all but two are idle.
fn rounds(
    options: &Options,
    subjects: &[Subject],
    (road, congestion): (Road, Option<&str>),
    wanted: &[&'static Measurement],
) -> Result<Vec<Table>> {
    let worlds = subjects
        .iter()
        .map(|subject| World::start(subject, road, congestion).context(subject.name))
        .collect::<Result<Vec<_>>>()?;
    let congestion = worlds[0].congestion()?;
    let mut tables: Vec<_> = wanted
        .iter()
        .map(|wanted| Table::new(wanted.name, wanted.title, &congestion, wanted.columns))
        .collect();
    for round in 0..options.rounds {
        for (wanted, table) in wanted.iter().zip(&mut tables) {
            // Each round starts with another subject, so that none always follows the same neighbour.
            for at in (0..worlds.len()).map(|at| (at + round) % worlds.len()) {
                let world = &worlds[at];
                let figures = wanted
                    .run(world, options.seconds, None)
                    .with_context(|| format!("{} through {}", wanted.name, world.name))?;
                println!("  round {}, {}", round + 1, table.line(world.name, &figures));
                table.add(world.name, figures);
            }
        }
    }
    count_syscalls(options, &worlds, wanted, &mut tables)?;
    Ok(tables)
}

/// Counting slows every system call of the machine down, so it is a round of its own and gives no other figure.
fn count_syscalls(
    options: &Options,
    worlds: &[World],
    wanted: &[&'static Measurement],
    tables: &mut [Table],
) -> Result<()> {
    let syscalls = match Syscalls::available() {
        Ok(syscalls) => syscalls,
        Err(reason) => {
            println!("system calls are not counted: {reason:#}");
            return Ok(());
        }
    };
    for (wanted, table) in wanted.iter().zip(tables) {
        for world in worlds.iter().filter(|world| world.agents.is_some()) {
            let figures = wanted.run(world, options.seconds, Some(&syscalls))?;
            table.add_only(world.name, "syscalls", &figures);
        }
    }
    Ok(())
}

/// Agents of its own for each subject, one after the other: memory that earlier load left would hide the connections'.
fn idle_table(subjects: &[Subject], congestion: Option<&str>, files: u64) -> Result<Table> {
    let mut table = None;
    for subject in subjects.iter().filter(|subject| subject.name != "direct") {
        let world = World::start(subject, Road::Hbone, congestion).context(subject.name)?;
        let congestion = world.congestion()?;
        let figures = idle::run(&world, files).with_context(|| format!("idle through {}", world.name))?;
        table
            .get_or_insert_with(|| Table::new("idle", idle::TITLE, &congestion, idle::COLUMNS))
            .add(world.name, figures);
    }
    table.context("there are no agents to measure")
}
