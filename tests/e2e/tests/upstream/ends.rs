//! Agents that stop while a connection is open through both programs: it goes on during the drain, then both ends are
//! told, and the agent that comes back serves new ones.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::lab;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::setup::{CLUSTERS, ECHO, Mesh, Way, exchange};
use super::world::Pod;

/// How long the drain and the return may take.
const BACK: Duration = Duration::from_secs(40);

pub(crate) fn either_agent_stops_gracefully() -> Result<()> {
    lab::block_on(async {
        let mesh = Mesh::up(&["west"])?;
        for way in [Way { from: "east", to: "west" }, Way { from: "west", to: "east" }] {
            mesh.stops(way, &mesh.near(way.from)?).await.with_context(|| format!("{way:?}, the client's"))?;
            mesh.stops(way, &mesh.far(way.to)?).await.with_context(|| format!("{way:?}, the server's"))?;
        }
        for cluster in CLUSTERS {
            mesh.carries(Way { from: cluster, to: cluster }, 10).await?;
        }
        Ok(())
    })
}

impl Mesh {
    async fn stops(&self, way: Way, agent: &Pod) -> Result<()> {
        let mut open = self.connect("asker", way, ECHO).await?;
        said(&mut open).await.context("before")?;
        kill(Pid::from_raw(self.world.pid(agent)?), Signal::SIGTERM)?;
        said(&mut open).await.context("in the drain")?;
        let begun = Instant::now();
        let end = tokio::time::timeout(BACK, open.read(&mut [0])).await.context("it never ended")?;
        println!("{way:?}: {} stopped, the client sees {end:?} after {:?}", agent.name, begun.elapsed());
        ensure!(!matches!(end, Ok(1..)), "{end:?}");
        let deadline = Instant::now() + BACK;
        loop {
            let answer = match self.connect("asker", way, ECHO).await {
                Ok(stream) => exchange(stream, b"again").await,
                Err(error) => Err(error),
            };
            if matches!(&answer, Ok(bytes) if bytes == b"again") {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not back: {answer:?}\n{}", self.log(agent)?);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// One byte there and back.
async fn said(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"x").await?;
    let back = tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut [0])).await;
    back.context("no answer")??;
    Ok(())
}
