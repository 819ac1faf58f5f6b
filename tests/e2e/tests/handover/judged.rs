//! What a hand-over does not carry over: a connection that the successor's policies forbid; and what happens without one.

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::lab;
use isthmus_kit::process;
use isthmus_kit::two_nodes::TwoNodes;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::agents::World;
use crate::apps::Road;
use crate::{DIAL, PATIENCE};

/// Admits a client that does not exist.
const NOBODY: &str = "policies:\n- name: nobody\n  namespace: ns\n  scope: Namespace\n  action: Allow\n  \
                      rules: [[[{principals: [!Exact cluster.local/ns/ns/sa/nobody]}]]]\n";

async fn exchange(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"x").await?;
    let echoed = async { Ok(stream.read_u8().await?) };
    let byte: Result<u8> = timeout(PATIENCE, echoed).await.context("no answer")?;
    ensure!(byte? == b'x');
    Ok(())
}

/// Connections to the server's pod, which echoes.
async fn connect(lab: &TwoNodes) -> Result<Vec<TcpStream>> {
    let mut all = Vec::new();
    for road in [Road::Mesh, Road::In] {
        let mut stream = road.connect(lab, DIAL).await?;
        // The kind, and a seed that it does not look at.
        stream.write_all(b"e0000").await?;
        exchange(&mut stream).await.with_context(|| format!("{road:?}"))?;
        all.push(stream);
    }
    Ok(all)
}

pub(crate) fn a_successor_judges_by_its_own_policies() -> Result<()> {
    lab::block_on(async {
        let mut world = World::new()?;
        let (_done, is_done) = tokio::sync::watch::channel(false);
        crate::apps::serve(&world.lab, &is_done)?;
        let _client = world.start(0).await?;
        let mut server = world.start(1).await?;
        let mut open = connect(&world.lab).await?;
        world.policies = NOBODY;
        let summary = world.replace(1, &mut server).await?;
        ensure!(summary.handed_over == open.len(), "{summary:?}");
        for stream in &mut open {
            let ended = timeout(PATIENCE, stream.read_u8()).await.context("a connection stays open")?;
            let reset = ended.err().is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset);
            ensure!(reset, "not reset");
        }
        for what in ["direction=\"inbound\"", "connection closed due to policy change", "handovers=1"] {
            server.process.line(&["connection complete", what]).await?;
        }
        Ok(())
    })
}

pub(crate) fn without_a_successor_connections_are_drained() -> Result<()> {
    lab::block_on(async {
        let mut world = World::new()?;
        let (_done, is_done) = tokio::sync::watch::channel(false);
        crate::apps::serve(&world.lab, &is_done)?;
        let _client = world.start(0).await?;
        let server = world.start(1).await?;
        let mut open = connect(&world.lab).await?;
        server.process.signal(Signal::SIGTERM)?;
        server.process.line(&["no successor listens for a hand-over"]).await?;
        server.process.line(&["draining"]).await?;
        for stream in &mut open {
            exchange(stream).await.context("a drain must leave open connections alone")?;
            stream.shutdown().await?;
            ensure!(timeout(PATIENCE, stream.read(&mut [0])).await.context("no end")?? == 0, "no proper end");
        }
        let ended = server.process.ended().await?;
        let log = process::text(&ended.lines);
        ensure!(ended.status.success() && log.matches("connection complete").count() == open.len(), "{log}");
        ensure!(!log.contains("handovers="), "{log}");
        Ok(())
    })
}
