//! Transparency: the same script over a direct road and over one with agents; each end must observe the same. Where that
//! is impossible, [`compare`] lists the exception.
//!
//! `ISTHMUS_FIDELITY_BULK` sets how many bytes go each way at once in the bulk tests; 1 GiB if it is not set.

mod compare;
mod full;
mod heavy;
mod roads;
mod scenes;
mod script;

use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use isthmus_kit::lab;

use roads::{Between, RoadLab};
use script::Road;

/// The HBONE port.
const HBONE: u16 = 15008;

fn main() -> ExitCode {
    lab::main_with_programs(&lab::tests![
        the_script_over_plaintext_passthrough,
        the_script_over_hbone,
        the_script_over_double_hbone,
        bulk_over_plaintext_passthrough,
        bulk_over_hbone,
        bulk_over_double_hbone,
        idle_connections_over_plaintext_passthrough,
        idle_connections_over_hbone,
        idle_connections_over_double_hbone,
        stalled_streams_over_hbone,
        stalled_streams_over_double_hbone,
        each_connection_to_a_dead_peer_fails_at_its_own_timeout,
    ])
}

fn the_script_over_plaintext_passthrough() -> Result<()> {
    script(Between::Plaintext)
}

fn the_script_over_hbone() -> Result<()> {
    script(Between::Hbone)
}

fn the_script_over_double_hbone() -> Result<()> {
    script(Between::DoubleHbone)
}

fn script(between: Between) -> Result<()> {
    lab::block_on(async {
        let lab = RoadLab::new(between).await?;
        lab.judged(compare::script(&lab.direct, &lab.road, &[]).await)
    })
}

fn bulk_over_plaintext_passthrough() -> Result<()> {
    bulk(Between::Plaintext)
}

fn bulk_over_hbone() -> Result<()> {
    bulk(Between::Hbone)
}

fn bulk_over_double_hbone() -> Result<()> {
    bulk(Between::DoubleHbone)
}

fn bulk(between: Between) -> Result<()> {
    lab::block_on(async {
        let lab = RoadLab::new(between).await?;
        let both = async {
            let (direct, got) = (heavy::bulk(&lab.direct).await?, heavy::bulk(&lab.road).await?);
            ensure!(direct == got, "direct {direct:?}, {} {got:?}", lab.road.name);
            Ok(())
        };
        lab.judged(both.await)
    })
}

fn idle_connections_over_plaintext_passthrough() -> Result<()> {
    idle(Between::Plaintext)
}

fn idle_connections_over_hbone() -> Result<()> {
    idle(Between::Hbone)
}

fn idle_connections_over_double_hbone() -> Result<()> {
    idle(Between::DoubleHbone)
}

fn idle(between: Between) -> Result<()> {
    lab::block_on(async {
        let lab = RoadLab::new(between).await?;
        let both = async {
            let (direct, got) = (heavy::idle(&lab.direct).await?, heavy::idle(&lab.road).await?);
            ensure!(direct == got, "the ends observe something else");
            Ok(())
        };
        lab.judged(both.await)
    })
}

fn stalled_streams_over_hbone() -> Result<()> {
    stalled(Between::Hbone)
}

fn stalled_streams_over_double_hbone() -> Result<()> {
    stalled(Between::DoubleHbone)
}

fn stalled(between: Between) -> Result<()> {
    lab::block_on(async {
        let lab = RoadLab::new(between).await?;
        let one_tunnel = || {
            let tunnels = lab.road.client.connected(HBONE)?;
            ensure!(tunnels == 1, "{tunnels} tunnels for four connections");
            Ok(())
        };
        lab.judged(heavy::stalled(&lab.road, one_tunnel).await)
    })
}

fn each_connection_to_a_dead_peer_fails_at_its_own_timeout() -> Result<()> {
    lab::block_on(async {
        let lab = RoadLab::new(Between::Hbone).await?;
        let (near, far) = (&lab.road.client, &lab.dead);
        let at: IpAddr = far.v4.into();
        let dead = Road::new("dead", (&near.netns, near.sockets()), (&far.netns, &far.sockets()), at);
        lab.judged(heavy::dead_peer(&dead, &lab.road).await)
    })
}
