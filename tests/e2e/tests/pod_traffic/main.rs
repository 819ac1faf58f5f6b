//! A pod's connections and queries with real agents and packets: DNS to the server that was asked, either address family
//! alone, and refusals.

mod dns;
mod elsewhere;
mod families;
mod own;
mod refused;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result};
use isthmus_kit::lab::{self, Host};
use isthmus_kit::two_nodes::{Agent, TwoNodes};
use isthmus_kit::zds::ZdsPeer;
use isthmus_node::rules::{self, PodRules};
use isthmus_sys::socket::Sockets;
use tokio::net::UdpSocket;

fn main() -> std::process::ExitCode {
    lab::main_with_programs(&lab::tests![
        dns::a_query_reaches_the_server_it_was_sent_to,
        dns::the_agents_own_queries_do_not_mix_with_the_applications,
        elsewhere::a_connection_is_retried_at_a_reachable_endpoint,
        families::a_pod_without_ipv6_is_carried,
        families::a_pod_without_ipv4_is_carried,
        families::a_pod_with_both_is_carried_over_both,
        families::a_service_address_of_one_family_reaches_a_pod_of_the_other,
        refused::an_invalid_request_is_refused_with_its_status_and_one_log_line,
        refused::an_unroutable_connection_is_closed_with_one_log_line,
        refused::the_agents_own_ports_are_not_reachable_as_an_application,
        own::the_agents_own_hbone_port_serves_only_metrics_and_readiness,
    ])
}

/// Longest wait for what must happen.
const SOON: std::time::Duration = std::time::Duration::from_secs(10);

/// An agent that serves one pod, with all of the node role's rules.
async fn serve(lab: &TwoNodes, at: usize, pod: &Host, name: &str, local: &str) -> Result<(Agent, ZdsPeer)> {
    let rules = |netns: &_| Ok(rules::apply_pod(netns, &PodRules::default())?);
    lab.serve(at, pod, name, local, rules).await
}

/// A DNS query of one question with a recognisable id.
fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut message = vec![0xab, 0xcd, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        message.extend_from_slice(label.as_bytes());
    }
    message.extend([0, kind.to_be_bytes()[0], kind.to_be_bytes()[1], 0, 1]);
    message
}

/// A UDP socket for talking to addresses like this one.
fn udp_towards(sockets: &Sockets, to: SocketAddr) -> Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    Ok(sockets.udp((any, 0).into())?)
}

/// Asks over a connected UDP socket, which receives answers from that server only.
async fn ask_udp(from: &Sockets, server: SocketAddr, message: &[u8]) -> Result<Vec<u8>> {
    let socket = udp_towards(from, server)?;
    socket.connect(server).await?;
    socket.send(message).await?;
    let mut answer = vec![0; 4096];
    let length = tokio::time::timeout(SOON, socket.recv(&mut answer)).await.context("no answer")??;
    answer.truncate(length);
    Ok(answer)
}
