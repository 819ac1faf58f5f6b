//! The real ztunnel beside ours, under our control plane and our node role. `ISTHMUS_UPSTREAM_ZTUNNEL` names its
//! program; without it every test here fails, because then nothing would be shown.

use std::process::ExitCode;

use isthmus_kit::{binaries, lab};

mod admin;
mod compare;
#[path = "../fidelity/compare.rs"]
mod compare_wire;
mod ends;
#[path = "../fidelity/full.rs"]
mod full;
mod logs;
mod routes;
#[path = "../fidelity/scenes.rs"]
mod scenes;
#[path = "../fidelity/script.rs"]
#[expect(dead_code, reason = "what other tests of the wire need")]
mod script;
mod setup;
mod wire;
#[path = "../two_clusters/world.rs"]
#[expect(dead_code, reason = "what the other tests of whole worlds need")]
mod world;

fn main() -> ExitCode {
    // The programs are built before the clock of the first test runs; the tests' own processes find them built.
    if !std::env::args().any(|arg| arg.starts_with("--lab-")) {
        let _ = binaries::path("playground");
    }
    lab::main_with_programs(&lab::tests![
        routes::ztunnel_is_the_agent_of_west,
        routes::ztunnel_is_the_agent_of_east,
        compare::one_node_of_each_cluster_is_ztunnels,
        ends::either_agent_stops_gracefully,
        wire::the_script_over_ztunnel_alone,
        wire::the_script_from_us_to_ztunnel,
        wire::the_script_from_ztunnel_to_us
    ])
}
