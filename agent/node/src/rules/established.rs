//! Connections that are open when a pod enters or leaves the mesh go on as they began. It must not know which pods do, and
//! when.

use isthmus_model::AgentPorts;
use isthmus_sys::conntrack;
use isthmus_sys::netns::Netns;
use isthmus_sys::nft::{self, Ruleset, Statement};
use isthmus_sys::route;
use isthmus_sys::sock_diag::{self, Connection};

use super::apply::{Error, apply_pod, pod_tables};
use super::config::{AGENT_MARK, EARLIER_MARK, GUARD, MARK_MASK, NAT, PodRules};
use super::pod::{released_ruleset, tracking_ruleset};
use super::redirected::is_to_agent;

const DNS_PORT: u16 = 53;

/// Writes the rules of a pod that runs already, as [`apply_pod`] does, and leaves alone the connections that it has: conntrack
/// gets to know them first. Without a trace of them it would take their next packets for new connections, and redirect
/// those. What is not known by the kernel's own table of sockets when the pod is enrolled has no way past the rules, so a
/// pod that is captured already gets nothing of this. Returns how many connections are left alone.
///
/// # Errors
/// When the kernel refuses; the pod's rules are then as before, or written without regard for its connections.
pub fn capture_running(netns: &Netns, rules: &PodRules) -> Result<usize, Error> {
    if redirects(&nft::dump(netns)?) {
        apply_pod(netns, rules)?;
        return Ok(0);
    }
    // In this order: what begins while the sockets are listed is tracked and marked from its first packet on.
    nft::apply(netns, &tracking_ruleset())?;
    let open: Vec<Connection> =
        sock_diag::connections(netns)?.into_iter().filter(|found| !is_agents(found)).collect();
    let known = conntrack::track(netns, &open, EARLIER_MARK, MARK_MASK);
    apply_pod(netns, rules)?;
    // Queries of a socket that has asked before begin anew, and are redirected.
    conntrack::forget(netns, |flow| flow.udp && flow.original.1.port() == DNS_PORT)?;
    Ok(known?)
}

/// Stops redirecting, for a pod that leaves the mesh and runs on: what begins now goes its own way, what the agent carries
/// is still translated. [`remove_pod`](super::remove_pod) ends that.
///
/// # Errors
/// When the kernel refuses; the rules are then as before.
pub fn release_pod(netns: &Netns) -> Result<(), Error> {
    let ruleset = released_ruleset();
    let gone: Vec<_> = pod_tables().into_iter().filter(|(_, name)| name == GUARD).collect();
    nft::replace(netns, &ruleset, &gone)?;
    // The queries of a socket go where its first one went, for as long as it goes on asking.
    Ok(conntrack::forget(netns, |flow| flow.udp && is_to_agent(flow))?)
}

/// Whether the agent has connections in the namespace that need its rules: redirected ones, and its own to the application.
/// Tunnels need none.
///
/// # Errors
/// When the kernel refuses.
pub fn carries(netns: &Netns) -> Result<bool, Error> {
    let AgentPorts { outbound, inbound_plaintext, dns, .. } = AgentPorts::WELL_KNOWN;
    let redirected = [outbound, inbound_plaintext, dns];
    let local: Vec<_> = route::addresses(netns)?.into_iter().map(|(_, net)| net.addr()).collect();
    let needs =
        |found: &Connection| redirected.contains(&found.local.port()) || local.contains(&found.remote.ip());
    let open = sock_diag::connections(netns)?;
    Ok(open.iter().any(|found| is_agents(found) && !found.done && needs(found)))
}

fn redirects(found: &Ruleset) -> bool {
    let chains = found.table(NAT).map(|table| table.chains.as_slice()).unwrap_or_default();
    let statements = chains.iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.statements);
    statements.into_iter().any(|statement| matches!(statement, Statement::Redirect(_)))
}

fn is_agents(connection: &Connection) -> bool {
    connection.mark.is_some_and(|mark| mark & MARK_MASK == AGENT_MARK)
}
