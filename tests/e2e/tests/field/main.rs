//! What people report of the field, replayed: which service, address or connection is meant. Each line is one test, by the
//! name that reports of faults use for it, and has its control outside of the mesh: the same pods, packets and patience.

mod addresses;
mod connections;
mod names;
mod node;
#[path = "../enrol/node_lab.rs"]
#[allow(dead_code, reason = "the lab of another suite, which needs more of it")]
mod node_lab;
#[path = "../pod_traffic/own.rs"]
mod own;
mod shares;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::lab::{self, Host};
use isthmus_kit::two_nodes::{Agent, TwoNodes};
use isthmus_kit::zds::ZdsPeer;
use isthmus_node::rules::{self, PodRules};
use isthmus_rt::task::Tasks;
use isthmus_sys::socket::{Sockets, Transparent, canonical};
use tokio::io::AsyncWriteExt as _;

fn main() -> std::process::ExitCode {
    lab::main_with_programs(&lab::tests![
        connections::c01_ports_of_the_client_and_of_the_agent_do_not_meet,
        addresses::c02_an_exact_address_beats_a_range,
        addresses::c03_services_of_one_address_divide_its_ports,
        names::c04_each_address_of_a_name_is_tried,
        addresses::c05_an_address_that_nobody_lists_is_served,
        addresses::c06_the_source_that_the_application_bound_is_kept,
        node::c07_a_configured_port_of_the_agent_is_known_everywhere,
        names::c08_a_query_from_port_53_is_answered,
        connections::c09_established_connections_outlive_enrolment_and_withdrawal,
        connections::c10_a_guest_behind_a_bridge_is_reached,
        names::c11_another_type_of_a_name_of_the_mesh_is_no_data,
        names::c12_a_host_in_upper_case_resolves,
        node::c13_a_log_level_of_the_plugin_fails_no_pod,
        shares::c14_a_busy_pod_takes_no_others_turn,
        shares::c15_a_large_service_delays_no_other_connection,
    ])
}

/// Longest wait for what must happen.
const SOON: Duration = Duration::from_secs(10);
/// Where applications listen.
const APP: u16 = 8080;

/// An agent that serves one pod, with the node role's rules.
async fn serve(lab: &TwoNodes, at: usize, pod: &Host, name: &str, local: &str) -> Result<(Agent, ZdsPeer)> {
    let rules = |netns: &_| Ok(rules::apply_pod(netns, &PodRules { canary: true, ..PodRules::default() })?);
    lab.serve(at, pod, name, local, rules).await
}

/// An application that says its name and the client's address, then ends.
fn says(sockets: &Sockets, at: SocketAddr, name: &'static str, tasks: &Tasks) -> Result<()> {
    let (listener, _) = sockets.listen(at, Transparent::Never)?;
    tasks.spawn("application", async move {
        while let Ok((mut stream, from)) = listener.accept().await {
            let _ = stream.write_all(format!("{name} to {}", canonical(from).ip()).as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    Ok(())
}

/// What the application at an address says to a host.
async fn asked(from: &Host, to: SocketAddr) -> Result<String> {
    let stream = from.sockets().connect(to, None, SOON).await.with_context(|| format!("to {to}"))?;
    Ok(String::from_utf8(lab::exchange(stream, b"").await?)?)
}

/// A service of the local file, with the server's application behind some of its ports.
fn service(name: &str, addresses: &str, ports: &str) -> String {
    format!(
        "- {{name: {name}, namespace: ns, hostname: {name}.example.com, {addresses}, ports: {{{ports}}}}}\n"
    )
}

/// A workload of the local file, outside of the mesh, that is an endpoint of a service.
fn endpoint(name: &str, address: &str, service: &str, ports: &str) -> String {
    format!(
        "- {{uid: c1//Pod/ns/{name}, name: {name}, namespace: ns, serviceAccount: {name}, network: net1, {address}, \
         protocol: TCP, services: {{ns/{service}.example.com: {{{ports}}}}}}}\n"
    )
}

/// The local file with more workloads and services.
fn mesh(lab: &TwoNodes, workloads: &str, services: &str) -> String {
    lab.local(services).replacen("services:\n-", &format!("{workloads}services:\n-"), 1)
}

/// The lines of an agent's log about connections that ended well.
fn completed(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains("connection complete") && !line.contains("error=")).collect()
}

/// Checks that the log has one such line with all of these texts.
fn has_line(log: &str, texts: &[&str]) -> Result<()> {
    let found = completed(log).iter().any(|line| texts.iter().all(|text| line.contains(text)));
    ensure!(found, "no line with {texts:?} in\n{log}");
    Ok(())
}
