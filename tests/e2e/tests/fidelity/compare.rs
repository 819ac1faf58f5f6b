//! The script on two roads: what both ends see must be the same, or what an exception says by name.

use anyhow::{Context as _, Result, ensure};

use crate::scenes::{SCENES, Scene};
use crate::script::{Event, Road, Trace};

/// A scene that cannot look the same with agents on the road.
struct Exception {
    scene: &'static str,
    /// Why it cannot.
    why: &'static str,
    /// What is seen on every road with agents.
    client: &'static [Event],
    server: &'static [Event],
}

/// An agent accepts a captured connection before it can know whether the server would.
const REFUSED: &[Event] = &[Event::Connected, Event::Reset];
const FIVE_REFUSED: &[Event] = &[
    Event::Connected,
    Event::Reset,
    Event::Connected,
    Event::Reset,
    Event::Connected,
    Event::Reset,
    Event::Connected,
    Event::Reset,
    Event::Connected,
    Event::Reset,
];

const EXCEPTIONS: &[Exception] = &[
    Exception {
        scene: "refused",
        why: "the client is connected to its agent before the server is asked; then it is reset",
        client: REFUSED,
        server: &[],
    },
    Exception {
        scene: "black_hole",
        why: "the client is connected to its agent, which gives up before the client would; then it is reset",
        client: FIVE_REFUSED,
        server: &[],
    },
];

/// Plays every scene on both roads; all that differ are named.
pub(crate) async fn script(direct: &Road, road: &Road) -> Result<()> {
    let mut differences = Vec::new();
    for scene in SCENES {
        if let Some(difference) = scene_on_both(scene, direct, road).await? {
            println!("{}: {difference}", scene.0);
            differences.push(format!("{}: {difference}", scene.0));
        }
    }
    ensure!(differences.is_empty(), "{} is not the wire:\n{}", road.name, differences.join("\n"));
    Ok(())
}

async fn scene_on_both((name, play): &Scene, direct: &Road, road: &Road) -> Result<Option<String>> {
    let wire = play(direct).await.with_context(|| format!("{name}, direct"))?;
    let played = play(road).await;
    let seen = match played {
        Ok(seen) => seen,
        // A scene that cannot be played to its end differs; the others are still worth knowing.
        Err(error) => return Ok(Some(format!("{error:#}"))),
    };
    let want = EXCEPTIONS.iter().find(|exception| exception.scene == *name).map_or_else(
        || wire.clone(),
        |exception| {
            println!("{name}: an exception: {}", exception.why);
            Trace { client: exception.client.to_vec(), server: exception.server.to_vec() }
        },
    );
    println!("{name}: {}", if seen == want { "the same" } else { "DIFFERENT" });
    Ok((seen != want).then(|| format!("\n  direct {wire:?}\n  {} {seen:?}", road.name)))
}
