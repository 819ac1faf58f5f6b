//! The script on two roads: what both ends see must be the same, or what an exception says by name.

use anyhow::{Context as _, Result, ensure};

use crate::scenes::{SCENES, Scene};
use crate::script::{Event, Road, Trace};

/// A scene that does not look the same with agents on the road.
pub(crate) struct Exception {
    pub(crate) scene: &'static str,
    /// Why it does not.
    pub(crate) why: &'static str,
    /// What is seen instead of what is seen directly; several where it is chance.
    pub(crate) instead: fn(Trace) -> Vec<Trace>,
}

/// What no agent can hide: it accepts a captured connection before it can know whether the server would.
const EXCEPTIONS: &[Exception] = &[
    Exception {
        scene: "refused",
        why: "the client is connected to its agent before the server is asked; then it is reset",
        instead: let_down,
    },
    Exception {
        scene: "black_hole",
        why: "the client is connected to its agent, which gives up before the client would; then it is reset",
        instead: let_down,
    },
];

/// A client that is not connected is connected and then reset.
fn let_down(direct: Trace) -> Vec<Trace> {
    let attempts = direct.client.into_iter();
    vec![Trace { client: attempts.flat_map(|_| [Event::Connected, Event::Reset]).collect(), ..direct }]
}

/// Plays every scene on both roads; all that differ are named. The road's own exceptions come before the common ones.
pub(crate) async fn script(direct: &Road, road: &Road, own: &[&[Exception]]) -> Result<()> {
    let mut differences = Vec::new();
    for scene in SCENES {
        let mut exceptions = own.iter().copied().chain([EXCEPTIONS]).flatten();
        let exception = exceptions.find(|exception| exception.scene == scene.0);
        if let Some(difference) = scene_on_both(scene, direct, road, exception).await? {
            println!("{}: {difference}", scene.0);
            differences.push(format!("{}: {difference}", scene.0));
        }
    }
    ensure!(differences.is_empty(), "{} is not the wire:\n{}", road.name, differences.join("\n"));
    Ok(())
}

async fn scene_on_both(
    (name, play): &Scene,
    direct: &Road,
    road: &Road,
    exception: Option<&Exception>,
) -> Result<Option<String>> {
    let wire = play(direct).await.with_context(|| format!("{name}, direct"))?;
    let seen = match play(road).await {
        Ok(seen) => seen,
        // A scene that cannot be played to its end differs; the others are still worth knowing.
        Err(error) => return Ok(Some(format!("{error:#}"))),
    };
    let want = exception.map_or_else(
        || vec![wire.clone()],
        |exception| {
            println!("{name}: an exception: {}", exception.why);
            (exception.instead)(wire.clone())
        },
    );
    println!("{name}: {}", if want.contains(&seen) { "as expected" } else { "DIFFERENT" });
    let told = || format!("\n  direct   {wire:?}\n  expected {want:?}\n  {} {seen:?}", road.name);
    Ok((!want.contains(&seen)).then(told))
}
