//! The real ztunnel beside our agent, with our control plane and our node role. `ISTHMUS_UPSTREAM_ZTUNNEL` names its
//! program; without it every test here fails, because it would prove nothing.

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
#[path = "../two_clusters/playground.rs"]
#[expect(dead_code, reason = "used by the tests of two_clusters")]
mod playground;
mod routes;
#[path = "../fidelity/scenes.rs"]
mod scenes;
#[path = "../fidelity/script.rs"]
#[expect(dead_code, reason = "what other tests of the wire need")]
mod script;
mod setup;
mod wire;

fn main() -> ExitCode {
    // Built before the time limit of the first test begins.
    if !std::env::args().any(|arg| arg.starts_with("--lab-")) {
        let _ = binaries::path("playground");
    }
    lab::main_with_programs(&lab::tests![
        routes::requests_pass_with_ztunnel_in_west,
        routes::requests_pass_with_ztunnel_in_east,
        compare::logs_and_metrics_equal_ztunnels,
        ends::open_connections_survive_the_drain_of_either_agent,
        wire::the_script_over_ztunnel_alone,
        wire::the_script_from_us_to_ztunnel,
        wire::the_script_from_ztunnel_to_us
    ])
}
