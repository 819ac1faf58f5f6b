//! Pods, peers and strangers that hold memory, descriptors, ports and work of an agent, beside a pod that notices nothing.
//!
//! The agent under attack runs in a cgroup of 256 MiB where the test may make one; everywhere its peak is checked against that
//! bound. Each case: the agent lives, the neighbour's p99 is at most doubled, and what was held goes back to the system.

mod ca;
mod cgroup;
mod frames;
mod gateway;
#[expect(dead_code, reason = "the suite of the gateway alone uses the rest")]
#[path = "../gateway_alone/gateway_lab.rs"]
mod gateway_lab;
mod limits;
mod peers;
mod plane;
mod pods;
mod world;
mod xds;

use std::process::ExitCode;

use isthmus_kit::lab;

fn main() -> ExitCode {
    lab::main_with_programs(&lab::tests![
        pods::connections_that_do_not_read_hold_a_bounded_amount,
        pods::an_accomplice_that_does_not_read_holds_a_bounded_amount,
        peers::data_for_an_application_that_does_not_read_is_bounded,
        peers::a_peer_that_stops_reading_tcp_holds_a_bounded_amount,
        peers::single_bytes_cost_no_buffer_each,
        peers::streams_that_end_and_are_reset_keep_their_slots,
        peers::a_dial_for_each_reset_stream_ends_with_a_goaway,
        peers::idle_tunnels_of_one_peer_are_closed,
        peers::frames_that_do_no_work_end_with_a_goaway,
        limits::a_pod_that_holds_its_descriptors_leaves_those_of_its_neighbour,
        limits::silent_connections_of_a_stranger_delay_no_honest_handshake,
        limits::a_pod_that_holds_a_port_of_the_agent_is_the_only_one_that_does_not_start,
        xds::resources_that_are_no_resources_are_one_line,
        xds::a_resource_of_ten_megabytes_is_refused,
        xds::a_response_of_200_megabytes_is_refused,
        xds::a_response_without_end_is_refused,
        xds::millions_of_workloads_are_refused,
        xds::a_server_that_reads_no_acknowledgement_is_left,
        xds::nonces_that_repeat_and_types_that_are_unknown_change_nothing,
        xds::a_stream_that_is_reset_after_each_response_is_one_line,
        frames::compression_that_was_not_negotiated_is_one_line,
        frames::a_message_that_stalls_changes_nothing,
        frames::a_server_that_resets_each_connection_is_one_line,
        frames::a_server_with_a_wrong_certificate_is_one_line,
        gateway::peers_outside_of_the_mesh_are_refused,
        gateway::connects_to_what_is_not_global_are_refused,
        gateway::a_connect_for_each_reset_stream_ends_with_a_goaway,
        gateway::clients_that_stop_reading_hold_a_bounded_amount,
        ca::an_answer_that_is_no_certificate_is_refused,
        ca::a_certificate_that_no_peer_accepts_is_refused,
        ca::an_answer_that_is_too_large_is_refused,
        ca::certificates_that_live_a_second_are_renewed_once_a_second,
        ca::a_ca_that_stalls_or_refuses_is_asked_seldom,
    ])
}
