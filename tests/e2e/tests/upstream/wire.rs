//! The fidelity script over roads with the real ztunnel; its differences are listed by name.

use anyhow::Result;
use isthmus_kit::lab::{self, Lan};

use super::compare_wire::{self, Exception};
use super::scenes::LITTLE;
use super::script::{Event, Road, Trace};
use super::setup::{Mesh, TestRoute, vip};

/// The end of a stream that ztunnel makes of a reset of its application, and what it makes of a stream that was reset.
const SWALLOWED: &str = "ztunnel takes a reset for an end and passes on an end";

/// With a ztunnel anywhere on the road.
const ANYWHERE: &[Exception] = &[
    Exception { scene: "reset_by_the_client", why: SWALLOWED, instead: swallowed },
    Exception { scene: "reset_by_the_server", why: SWALLOWED, instead: swallowed },
    Exception { scene: "reset_by_the_server_behind_the_clients_fin", why: SWALLOWED, instead: swallowed },
    Exception { scene: "unread_data_at_close_by_the_client", why: SWALLOWED, instead: swallowed },
    Exception { scene: "unread_data_at_close_by_the_server", why: SWALLOWED, instead: swallowed },
    Exception {
        scene: "reset_before_the_answer",
        why: "ztunnel does not look at its client, or at its stream, while it dials",
        instead: |direct| vec![Trace { server: vec![Event::NoAnswer, Event::Connected], ..direct }],
    },
];

/// With ztunnel as the server's agent.
const AT_THE_SERVER: &[Exception] =
    &[Exception { scene: "reset_by_the_client_behind_the_servers_fin", why: SWALLOWED, instead: swallowed }];

/// With ztunnel as the client's agent.
const AT_THE_CLIENT: &[Exception] = &[
    Exception { scene: "refused", why: NOT_MADE, instead: ended },
    Exception { scene: "black_hole", why: NOT_MADE, instead: ended },
    Exception {
        scene: "reset_by_the_client_behind_the_servers_fin",
        why: "ztunnel ends its stream and drops it; which of the two is first at the other end is chance",
        instead: |direct| [vec![direct.clone()], swallowed(direct)].concat(),
    },
    Exception {
        scene: "half_close_by_the_server",
        why: "ztunnel cancels its outer stream right behind the last bytes; when that overtakes them or the end behind \
              them, these are lost, and what is cut off must not look complete",
        instead: |direct| vec![direct.clone(), without_end(direct.clone()), cut_off(direct)],
    },
];
const NOT_MADE: &str = "ztunnel ends a connection that it could not make";

/// The server receives everything, then a reset instead of a FIN.
fn without_end(direct: Trace) -> Trace {
    let cut = |event| if event == Event::End { Event::Reset } else { event };
    Trace { server: direct.server.into_iter().map(cut).collect(), ..direct }
}

/// The last bytes are lost, and the server sees a reset.
fn cut_off(direct: Trace) -> Trace {
    Trace { server: vec![Event::Connected, Event::Got(LITTLE), Event::Reset], ..direct }
}

/// Resets arrive as FINs.
fn swallowed(direct: Trace) -> Vec<Trace> {
    let seen = |events: Vec<Event>| -> Vec<Event> {
        events.into_iter().map(|event| if event == Event::Reset { Event::End } else { event }).collect()
    };
    vec![Trace { client: seen(direct.client), server: seen(direct.server) }]
}

/// A client that would be refused is connected, and then sees a FIN.
fn ended(direct: Trace) -> Vec<Trace> {
    let attempts = direct.client.into_iter();
    vec![Trace { client: attempts.flat_map(|_| [Event::Connected, Event::End]).collect(), ..direct }]
}

pub(crate) fn the_script_over_ztunnel_alone() -> Result<()> {
    script(TestRoute { from: "west", to: "west" }, &[ANYWHERE, AT_THE_CLIENT, AT_THE_SERVER])
}

pub(crate) fn the_script_from_us_to_ztunnel() -> Result<()> {
    script(TestRoute { from: "east", to: "west" }, &[ANYWHERE, AT_THE_SERVER])
}

pub(crate) fn the_script_from_ztunnel_to_us() -> Result<()> {
    script(TestRoute { from: "west", to: "east" }, &[ANYWHERE, AT_THE_CLIENT])
}

/// Within west over HBONE, between the clusters over double HBONE.
fn script(way: TestRoute, exceptions: &[&[Exception]]) -> Result<()> {
    lab::block_on(async {
        let mesh = Mesh::up(&["west"])?;
        let lan = Lan::new()?;
        let (near, far) = (lan.host()?, lan.host()?);
        let direct =
            Road::new("direct", (&near.netns, &near.sockets()), (&far.netns, &far.sockets()), far.v4.into());
        let client = mesh.playground.pod(&format!("{}/asker-{}", way.from, way.from))?;
        let server = mesh.playground.pod(&format!("{}/echo-{}", way.to, way.to))?;
        let ends = [mesh.playground.netns(&client)?, mesh.playground.netns(&server)?];
        let sockets = [mesh.playground.sockets(&client)?, mesh.playground.sockets(&server)?];
        let road = Road::new("ztunnel", (&ends[0], &sockets[0]), (&ends[1], &sockets[1]), server.ip.into());
        let road = road.to(vip(way.from, way.to).into());
        compare_wire::script(&direct, &road, exceptions).await
    })
}
