//! Pods, peers and strangers that hold memory, descriptors, ports and work of an agent, beside a pod that notices nothing.
//!
//! The agent under attack runs in a cgroup of 256 MiB where the test may make one; everywhere its peak is checked against that
//! bound. Each case: the agent lives, the neighbour's p99 is at most doubled, and what was held goes back to the system.

mod cgroup;
mod limits;
mod peers;
mod pods;
mod world;

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
    ])
}
