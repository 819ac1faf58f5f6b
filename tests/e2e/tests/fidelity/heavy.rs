//! Loads that are too large for one scene: gigabytes, thousands of idle connections, stalled streams, a dead peer.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isthmus_sys::limits;

use crate::full::Full;
use crate::script::{End, Event, Road, Trace, attempt};

/// Bytes each way, unless [`BULK_VARIABLE`] names another number.
const BULK: u64 = 1024 * 1024 * 1024;
const BULK_VARIABLE: &str = "ISTHMUS_FIDELITY_BULK";
/// Connections that are open at once.
const IDLE: u64 = 2000;
/// Files that a process has beside its connections.
const OTHER_FILES: u64 = 400;
/// Stalled streams, and more bytes than fit into all of their buffers.
const STALLED: usize = 3;
const STALL: u64 = 128 * 1024 * 1024;
const FLOW: u64 = 16 * 1024 * 1024;
/// The agent's connect timeout, and the tolerance for its report.
const DIAL: Duration = Duration::from_secs(10);
const LATER: Duration = Duration::from_secs(5);

/// Bulk transfer in both directions at once; every byte is compared with what was sent.
pub(crate) async fn bulk(road: &Road) -> Result<Trace> {
    let bytes = match std::env::var(BULK_VARIABLE) {
        Ok(text) => {
            text.parse().with_context(|| format!("{BULK_VARIABLE}={text:?}: not a number of bytes"))?
        }
        Err(_) => BULK,
    };
    let (mut client, mut server) = road.meet().await?;
    let begun = Instant::now();
    tokio::try_join!(client.exchange(bytes), server.exchange(bytes))?;
    println!("{}: {bytes} bytes each way in {:?}", road.name, begun.elapsed());
    let sums = [Event::Got(bytes), Event::End];
    let trace = End::trace(client, server);
    ensure!(trace.client.ends_with(&sums) && trace.server.ends_with(&sums), "{trace:?}");
    Ok(trace)
}

/// [`IDLE`] connections, or as many as the file limit allows: all open, idle and usable; each is closed by one of its
/// ends.
pub(crate) async fn idle(road: &Road) -> Result<Vec<Trace>> {
    // Both ends are in this process; and an agent between has two sockets for each.
    let limit = limits::raise_nofile()?;
    let number = IDLE.min(limit.saturating_sub(OTHER_FILES) / 2);
    ensure!(number >= 200, "a limit of {limit} open files is too low to show anything");
    let begun = Instant::now();
    let port = road.port();
    let listener = road.listen(port)?;
    let mut ends = Vec::new();
    for at in 0..number {
        let (mut client, mut server) =
            road.meet_at(&listener, port).await.with_context(|| format!("connection {at}"))?;
        client.send(1).await?;
        server.read(1).await?;
        ends.push((client, server));
    }
    println!("{}: {number} connections were open after {:?}", road.name, begun.elapsed());
    let mut traces = Vec::new();
    for (at, (mut client, mut server)) in ends.into_iter().enumerate() {
        let used = async {
            server.send(1).await?;
            client.read(1).await?;
            let (first, last) =
                if at % 2 == 0 { (&mut client, &mut server) } else { (&mut server, &mut client) };
            first.close();
            last.rest().await
        };
        used.await.with_context(|| format!("connection {at} after {:?}", begun.elapsed()))?;
        traces.push(End::trace(client, server));
    }
    println!("{}: all of them were used and closed after {:?}", road.name, begun.elapsed());
    Ok(traces)
}

/// Three connections whose clients do not read, and a fourth beside them. The caller checks, before bytes flow, whether
/// they share a tunnel.
pub(crate) async fn stalled(road: &Road, look: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        stalled.push(road.meet().await?);
    }
    let mut flowing = road.meet().await?;
    look()?;
    let before = flow(&mut flowing).await?;
    for (_, server) in &mut stalled {
        server.send_until_held_up(STALL).await?;
        ensure!(server.sent() < STALL, "the stream does not stall");
    }
    let beside = flow(&mut flowing).await?;
    println!("{}: {FLOW} bytes each way in {before:?}, beside stalled streams in {beside:?}", road.name);
    // With head-of-line blocking the fourth would stop, not slow down a little.
    let limit = before * 5 + Duration::from_secs(3);
    ensure!(beside < limit, "{beside:?} beside stalled streams, {before:?} without");
    for (client, server) in &mut stalled {
        client.read(server.sent()).await?;
        server.close();
        client.rest().await?;
    }
    for (client, server) in stalled {
        let (sent, trace) = (server.sent(), End::trace(client, server));
        ensure!(trace.client == [Event::Connected, Event::Got(sent), Event::End], "{trace:?}");
    }
    Ok(())
}

/// Traffic in both directions for some time.
async fn flow((client, server): &mut (End, End)) -> Result<Duration> {
    let begun = Instant::now();
    tokio::try_join!(client.send(FLOW), server.read(FLOW))?;
    tokio::try_join!(server.send(FLOW), client.read(FLOW))?;
    Ok(begun.elapsed())
}

/// Connections to a pod of the mesh whose agent does not answer, started one after the other: each fails at its own
/// timeout, none waits for an earlier one, and connections to other pods are not delayed.
pub(crate) async fn dead_peer(dead: &Road, alive: &Road) -> Result<()> {
    let _full = Full::new(dead, 15008).await?;
    let begun = Instant::now();
    let one = async |after: u64| -> Result<Duration> {
        tokio::time::sleep(Duration::from_secs(after)).await;
        let begun = Instant::now();
        let seen = attempt(dead, dead.port(), DIAL).await?.seen();
        ensure!(seen == [Event::Connected, Event::Reset], "{seen:?}");
        Ok(begun.elapsed())
    };
    let others = async {
        for _ in 0..20 {
            let (mut client, mut server) = alive.meet().await?;
            client.send(1).await?;
            server.read(1).await?;
        }
        Ok(begun.elapsed())
    };
    let (a, b, c, d, e, others) = tokio::try_join!(one(0), one(0), one(0), one(2), one(4), others)?;
    println!("given up after {:?}, the others were done after {others:?}", [a, b, c, d, e]);
    ensure!(others < DIAL, "connections to others took {others:?}");
    for took in [a, b, c, d, e] {
        ensure!(took < DIAL + LATER, "given up after {took:?} only");
    }
    Ok(())
}
