//! Agents that are killed in the middle of a hand-over: each connection goes on, or ends with a reset or as the kernel ends
//! those of a process that is killed. None hangs, and none has a byte that is wrong, as it would when two agents served it.
//!
//! `ISTHMUS_KILLS` says how often.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use isthmus_kit::lab;
use isthmus_kit::wait;
use nix::sys::signal::Signal;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::agents::{Served, World};
use crate::apps::{self, Kind, Lost, Road};
use crate::{DIAL, PATIENCE, number};

const KILLS: usize = 6;
const CONNECTIONS: usize = 120;
/// The latest moment of a kill after the old agent was told to end.
const LATEST: u64 = 400;
/// Descriptors that an agent may have more than at the beginning.
const SLACK: usize = 30;

pub(crate) fn an_agent_that_is_killed_half_way_ends_no_connection_wrongly() -> Result<()> {
    let kills = number("ISTHMUS_KILLS", KILLS)?;
    lab::block_on(async {
        let mut world = World::new()?;
        let (done, is_done) = watch::channel(false);
        let reached = apps::serve(&world.lab, &is_done)?;
        let server = world.start(1).await?;
        let mut random = fastrand::Rng::new();
        let mut open = None;
        for round in 0..kills {
            let (kill_new, after) = (round % 2 == 0, Duration::from_micros(random.u64(0..LATEST * 1000)));
            let old = world.start(0).await?;
            let reports = connect(&world, &is_done).await?;
            let all = async || reached.load(Ordering::Relaxed) == (round + 1) * CONNECTIONS;
            wait::until("all connections to reach their servers", all).await?;
            let ends = killed(&mut world, old, &done, reports, (kill_new, after)).await;
            let ends =
                ends.with_context(|| format!("round {round}: killed new: {kill_new}, after {after:?}"))?;
            println!("round {round}: killed new: {kill_new}, after {after:?}: {ends:?}");
            done.send_replace(false);
            let now = world.descriptors(1).await?;
            let limit = *open.get_or_insert(now) + SLACK;
            let closed = async || world.descriptors(1).await.is_ok_and(|open| open <= limit);
            wait::until("descriptors of the other agent to be closed", closed).await?;
        }
        drop(server);
        Ok(())
    })
}

type Reports = mpsc::UnboundedReceiver<(usize, Kind, Result<()>)>;

async fn connect(world: &World, is_done: &apps::Done) -> Result<Reports> {
    let (report, reports) = mpsc::unbounded_channel();
    for index in 0..CONNECTIONS {
        let stream = Road::of(index).connect(&world.lab, DIAL).await?;
        // None that stalls: they take their time to end.
        let kind = Kind::of(index % 79 + 1);
        let (report, is_done) = (report.clone(), is_done.clone());
        world.lab.tasks.spawn("client", async move {
            let outcome = apps::client(kind, u32::try_from(index).unwrap_or(0), stream, is_done).await;
            let _ = report.send((index, kind, outcome));
        });
    }
    Ok(reports)
}

/// How connections ended.
#[derive(Debug, Default)]
struct Ends {
    went_on: usize,
    reset: usize,
    /// By the kernel, with the process that had them.
    closed: usize,
}

/// One kill.
async fn killed(
    world: &mut World,
    old: Served,
    done: &watch::Sender<bool>,
    mut reports: Reports,
    (kill_new, after): (bool, Duration),
) -> Result<Ends> {
    let new = world.start_beside(0).await?;
    old.process.signal(Signal::SIGTERM)?;
    tokio::time::sleep(after).await;
    let (victim, survivor) = if kill_new { (new, old) } else { (old, new) };
    // It may have ended already.
    let _ = victim.process.signal(Signal::SIGKILL);
    victim.process.ended().await?;
    done.send_replace(true);
    let mut ends = Ends::default();
    for _ in 0..CONNECTIONS {
        let ended = timeout(PATIENCE, reports.recv()).await.context("a connection hangs")?;
        let (index, kind, outcome) = ended.context("a connection was not reported")?;
        match outcome {
            Ok(()) => ends.went_on += 1,
            Err(error) => match error.downcast_ref::<Lost>() {
                Some(lost) if lost.is_reset() => ends.reset += 1,
                Some(_) => ends.closed += 1,
                None => bail!("connection {index}, {kind:?}: {error:#}"),
            },
        }
    }
    survivor.process.signal(Signal::SIGKILL)?;
    survivor.process.ended().await?;
    Ok(ends)
}
