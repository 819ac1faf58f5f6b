//! The whole product from outside: the playground's two clusters, packets on their wires, authorization, and what remains
//! after it ends. Each test has a playground of its own.

use std::process::ExitCode;

use isthmus_kit::lab;

mod capture;
mod identity;
mod playground;
mod restart;
mod strangers;
mod whole;

fn main() -> ExitCode {
    lab::main_with_programs(&lab::tests![
        capture::between_clusters_and_at_pods_there_is_only_tls,
        strangers::nobody_without_a_certificate_of_the_mesh_is_let_in,
        identity::a_policy_of_west_is_for_accounts_and_not_for_headers,
        restart::an_agent_that_comes_and_goes_under_a_control_plane_leaks_nothing,
        whole::runs_leave_nothing_behind_even_when_killed
    ])
}
