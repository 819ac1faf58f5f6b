//! Attacks by a pod of the agent's node.

use anyhow::Result;
use isthmus_kit::lab;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::world::{Cue, DEAF, PATIENCE, SOURCE, World};

const CONNECTIONS: usize = 200;

pub(crate) fn connections_that_do_not_read_hold_a_bounded_amount() -> Result<()> {
    lab::block_on(async {
        let world = World::new().await?;
        world.applications()?;
        let (from, to) = (world.lab.client.sockets(), world.server(SOURCE));
        let attack = move |cue: Cue| async move {
            let mut all = Vec::new();
            for _ in 0..CONNECTIONS {
                let mut stream = from.connect(to, None, PATIENCE).await?;
                // It flows, unless the budget is spent, and is then left.
                let mut first = [0; 1024];
                let first = stream.read_exact(&mut first);
                let _ = tokio::time::timeout(std::time::Duration::from_millis(30), first).await;
                all.push(stream);
            }
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            cue.hold().await;
            Ok(())
        };
        world.judge(0, attack).await
    })
}

pub(crate) fn an_accomplice_that_does_not_read_holds_a_bounded_amount() -> Result<()> {
    lab::block_on(async {
        let world = World::new().await?;
        world.applications()?;
        let (from, to) = (world.lab.client.sockets(), world.server(DEAF));
        let attack = move |cue: Cue| async move {
            let mut all = Vec::new();
            for _ in 0..CONNECTIONS {
                let mut stream = from.connect(to, None, PATIENCE).await?;
                let fill = async { while stream.write_all(&[0; 64 * 1024]).await.is_ok() {} };
                let _ = tokio::time::timeout(std::time::Duration::from_millis(30), fill).await;
                all.push(stream);
            }
            cue.hold().await;
            Ok(())
        };
        // The far agent holds what its application does not read.
        world.judge(1, attack).await
    })
}
