//! Memory of the agents per idle connection.

use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use isthmus_kit::lab::in_ns;

use crate::meter::pause;
use crate::requests;
use crate::server::PATIENCE;
use crate::table::Column;
use crate::worlds::World;

pub(crate) const TITLE: &str = "idle connections, after one request each: anonymous memory of each agent";
pub(crate) const COLUMNS: &[Column] = &[
    Column::new("connections", 0),
    Column::new("client's agent, KiB each", 2),
    Column::new("server's agent, KiB each", 2),
];
const CONNECTIONS: u64 = 10_000;
/// Descriptors of this process for anything but idle connections, which take two each: both their ends are here.
const OTHER_FILES: u64 = 600;
/// Allocators give back what is free after a while.
const SETTLE: Duration = Duration::from_secs(4);

/// The row of [`COLUMNS`]; as many connections as the limit of open files allows.
pub(crate) fn run(world: &World, files: u64) -> Result<Vec<f64>> {
    let number = CONNECTIONS.min(files.saturating_sub(OTHER_FILES) / 2);
    let connections = usize::try_from(number)?;
    let agents = world.agents.as_ref().context("no agents")?;
    let (client, small) = (&world.lab.client.netns, world.small);
    // The first one fetches the certificates and opens a tunnel.
    in_ns(client, || async move { requests::open(small, 1).await.map(drop) })?;
    pause(SETTLE);
    let before = agents.memory()?;
    let (ready, is_ready) = mpsc::channel();
    let (end, at_end) = tokio::sync::oneshot::channel::<()>();
    let after = std::thread::scope(|scope| {
        let clients = scope.spawn(move || {
            in_ns(client, || async move {
                let open = requests::open(small, connections).await?;
                let _ = ready.send(());
                let _ = at_end.await;
                drop(open);
                Ok(())
            })
        });
        let measured =
            is_ready.recv_timeout(10 * PATIENCE).context("the connections do not open").and_then(|()| {
                pause(SETTLE);
                agents.memory()
            });
        drop(end);
        clients.join().map_err(|_| anyhow!("the clients panicked"))??;
        measured
    })?;
    let each =
        |at: usize| after[at].anonymous.saturating_sub(before[at].anonymous) as f64 / number as f64 / 1024.0;
    Ok(vec![number as f64, each(0), each(1)])
}
