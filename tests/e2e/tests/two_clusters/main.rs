//! The whole product from outside: the playground's two clusters, packets on their wires, authorization, and what remains
//! after it ends. Each test has a playground of its own.

use std::process::ExitCode;

use isthmus_kit::lab;

mod capture;
mod commands;
mod identity;
mod playground;
mod restart;
mod strangers;
mod whole;

fn main() -> ExitCode {
    lab::main_with_programs(&lab::tests![
        capture::only_tls_passes_between_clusters_and_at_pods,
        strangers::clients_without_a_certificate_of_the_mesh_are_refused,
        identity::a_policy_matches_the_certificate_and_not_the_headers,
        restart::an_agent_restarting_under_a_control_plane_leaks_nothing,
        commands::commands_bear_a_closed_pipe_and_reach_the_api_servers,
        whole::runs_leave_nothing_behind_even_when_killed
    ])
}
