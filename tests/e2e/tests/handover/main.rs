//! An upgrade that loses no connection: agents of both nodes are replaced, again and again, while connections of all kinds
//! are open through them. Each byte of each connection is compared.
//!
//! `ISTHMUS_HANDOVERS` and `ISTHMUS_CONNECTIONS` make the run longer or shorter; for a long one, `ISTHMUS_TEST_SECONDS` is its
//! time limit.

mod agents;
mod apps;
mod judged;
mod kills;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::{lab, wait};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use self::agents::World;
use self::apps::{Kind, Road};
use self::judged::{a_successor_judges_by_its_own_policies, without_a_successor_connections_are_drained};
use self::kills::an_agent_that_is_killed_half_way_ends_no_connection_wrongly;

/// Hand-overs in a row, and connections, unless the environment says otherwise.
const HANDOVERS: usize = 4;
const CONNECTIONS: usize = 2000;
const DIAL: Duration = Duration::from_secs(30);
/// For the connections to end after the last hand-over.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long connections carry traffic between two hand-overs.
const BETWEEN: Duration = Duration::from_millis(500);

fn main() -> std::process::ExitCode {
    lab::main_with_programs(&lab::tests![
        one_connection_outlives_the_agents_of_both_ends,
        no_connection_is_lost_over_many_upgrades,
        a_successor_judges_by_its_own_policies,
        without_a_successor_connections_are_drained,
        an_agent_that_is_killed_half_way_ends_no_connection_wrongly
    ])
}

fn number(variable: &str, default: usize) -> Result<usize> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text}")),
        Err(_) => Ok(default),
    }
}

fn one_connection_outlives_the_agents_of_both_ends() -> Result<()> {
    upgrades(1, 2)
}

fn no_connection_is_lost_over_many_upgrades() -> Result<()> {
    upgrades(number("ISTHMUS_CONNECTIONS", CONNECTIONS)?, number("ISTHMUS_HANDOVERS", HANDOVERS)?)
}

fn upgrades(connections: usize, handovers: usize) -> Result<()> {
    lab::block_on(async {
        let mut world = World::new()?;
        let (done, is_done) = watch::channel(false);
        let reached = apps::serve(&world.lab, &is_done)?;
        let mut agents = [world.start(0).await?, world.start(1).await?];
        let ((report, mut reports), started) = (mpsc::unbounded_channel(), Instant::now());
        for index in 0..connections {
            let road = Road::of(index);
            let stream = road.connect(&world.lab, DIAL).await;
            let stream = stream.with_context(|| format!("connection {index}, {road:?}"))?;
            let kind = if connections == 1 { Kind::Stream } else { Kind::of(index) };
            let (report, is_done) = (report.clone(), is_done.clone());
            world.lab.tasks.spawn("client", async move {
                let outcome = apps::client(kind, u32::try_from(index).unwrap_or(0), stream, is_done).await;
                let _ = report.send((index, kind, outcome));
            });
        }
        drop(report);
        let all = async || reached.load(Ordering::Relaxed) == connections;
        wait::until("all connections to reach their servers", all).await?;
        println!("{connections} connections after {:?}", started.elapsed());
        let mut replaced = [0, 0];
        let carried = |node| (0..connections).filter(|index| Road::of(*index).is_at(node)).count();
        for round in 0..handovers {
            tokio::time::sleep(BETWEEN).await;
            ensure!(reports.is_empty(), "{:?} ended before hand-over {round}", reports.recv().await);
            let (at, started) = (round % 2, Instant::now());
            let summary =
                world.replace(at, &mut agents[at]).await.with_context(|| format!("hand-over {round}"))?;
            println!("hand-over {round} at node {at}: {summary:?}, in {:?}", started.elapsed());
            ensure!(summary.handed_over == carried(at), "{summary:?} of {}", carried(at));
            replaced[at] += 1;
        }
        tokio::time::sleep(BETWEEN).await;
        ensure!(reports.is_empty(), "{:?} ended after the hand-overs", reports.recv().await);
        done.send_replace(true);
        let over = Instant::now();
        for _ in 0..connections {
            let ended = timeout(PATIENCE, reports.recv()).await.context("a connection hangs")?;
            let (index, kind, outcome) = ended.context("a connection was not reported")?;
            outcome.with_context(|| format!("connection {index}, {kind:?}, after {:?}", over.elapsed()))?;
        }
        println!("all ended properly within {:?}", over.elapsed());
        for (at, agent) in agents.into_iter().enumerate() {
            agents::check_log(agent, carried(at), replaced[at])
                .await
                .with_context(|| format!("node {at}"))?;
        }
        Ok(())
    })
}
