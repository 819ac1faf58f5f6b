//! Agents that stop while a connection is open through both programs: it stays usable during the drain, then both ends
//! see it close, and the restarted agent serves new ones.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::{lab, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::playground::Pod;
use super::setup::{CLUSTERS, ECHO, Mesh, TestRoute, exchange};

/// Longest drain and restart.
const BACK: Duration = Duration::from_secs(40);

pub(crate) fn open_connections_survive_the_drain_of_either_agent() -> Result<()> {
    lab::block_on(async {
        let mesh = Mesh::up(&["west"])?;
        for way in [TestRoute { from: "east", to: "west" }, TestRoute { from: "west", to: "east" }] {
            mesh.stops(way, &mesh.near(way.from)?).await.with_context(|| format!("{way:?}, the client's"))?;
            mesh.stops(way, &mesh.far(way.to)?).await.with_context(|| format!("{way:?}, the server's"))?;
        }
        for cluster in CLUSTERS {
            mesh.carries(TestRoute { from: cluster, to: cluster }, 10).await?;
        }
        Ok(())
    })
}

impl Mesh {
    async fn stops(&self, way: TestRoute, agent: &Pod) -> Result<()> {
        let mut open = self.connect("asker", way, ECHO).await?;
        echoes(&mut open).await.context("before")?;
        kill(Pid::from_raw(self.playground.pid(agent)?), Signal::SIGTERM)?;
        echoes(&mut open).await.context("in the drain")?;
        let begun = Instant::now();
        let end =
            tokio::time::timeout(BACK, open.read(&mut [0])).await.context("the connection was not closed")?;
        println!("{way:?}: {} stopped, the client sees {end:?} after {:?}", agent.name, begun.elapsed());
        ensure!(!matches!(end, Ok(1..)), "{end:?}");
        let works = async || {
            let stream = self.connect("asker", way, ECHO).await.ok()?;
            exchange(stream, b"again").await.ok().filter(|bytes| bytes == b"again")
        };
        let back = wait::within(BACK, works).await;
        ensure!(back.is_some(), "not back after {BACK:?}\n{}", self.log(agent)?);
        Ok(())
    }
}

/// Checks that one byte is echoed.
async fn echoes(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"x").await?;
    let back = tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut [0])).await;
    back.context("no answer")??;
    Ok(())
}
