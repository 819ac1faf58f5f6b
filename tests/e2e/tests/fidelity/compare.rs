//! Plays the script on two roads and compares: both ends must observe the same, or a listed exception.

use anyhow::{Context as _, Result, ensure};

use crate::scenes::{SCENES, Scene};
use crate::script::{Event, Road, Trace};

/// A scene whose ends observe something else with agents on the road.
pub(crate) struct Exception {
    pub(crate) scene: &'static str,
    /// Why.
    pub(crate) why: &'static str,
    /// The trace with agents, from the direct one; several where timing decides.
    pub(crate) instead: fn(Trace) -> Vec<Trace>,
}

/// What no agent can hide: it accepts a captured connection before it knows whether the server will.
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

/// Plays every scene on both roads and names all that differ. The road's own exceptions come before the common ones.
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
        // A scene that cannot be played to its end differs; the others are compared all the same.
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
