//! Whether the mesh is a wire: the same script over a road with nothing on it and over one with agents, and what each
//! end sees must be the same. Where it cannot be, [`compare`] says so by name.
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

use roads::{Between, World};
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
        a_dead_peer_is_given_up_by_everyone_in_his_own_time,
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
        let world = World::new(between).await?;
        world.judged(compare::script(&world.direct, &world.road, &[]).await)
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
        let world = World::new(between).await?;
        let both = async {
            let (direct, got) = (heavy::bulk(&world.direct).await?, heavy::bulk(&world.road).await?);
            ensure!(direct == got, "direct {direct:?}, {} {got:?}", world.road.name);
            Ok(())
        };
        world.judged(both.await)
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
        let world = World::new(between).await?;
        let both = async {
            let (direct, got) = (heavy::idle(&world.direct).await?, heavy::idle(&world.road).await?);
            ensure!(direct == got, "what the ends see is not the same");
            Ok(())
        };
        world.judged(both.await)
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
        let world = World::new(between).await?;
        let one_tunnel = || {
            let tunnels = world.road.client.connected(HBONE)?;
            ensure!(tunnels == 1, "{tunnels} tunnels for four connections");
            Ok(())
        };
        world.judged(heavy::stalled(&world.road, one_tunnel).await)
    })
}

fn a_dead_peer_is_given_up_by_everyone_in_his_own_time() -> Result<()> {
    lab::block_on(async {
        let world = World::new(Between::Hbone).await?;
        let (near, far) = (&world.road.client, &world.dead);
        let at: IpAddr = far.v4.into();
        let dead = Road::new("dead", (&near.netns, near.sockets()), (&far.netns, &far.sockets()), at);
        world.judged(heavy::dead_peer(&dead, &world.road).await)
    })
}
