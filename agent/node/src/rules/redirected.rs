//! The conntrack entries of connections that rules have redirected. It must not know when rules come and go.

use std::net::SocketAddr;

use isthmus_model::AgentPorts;
use isthmus_sys::conntrack::{self, Flow};
use isthmus_sys::netns::Netns;

use super::config::{EARLIER_MARK, MARK_MASK, SPOOFED_MARK};

/// Forgets what rules that are gone have done to connections: an entry lives for days, and would do it to another
/// connection that happens to have the same ports.
pub(super) fn forget_redirected(netns: &Netns) {
    let ours =
        |flow: &Flow| is_to_agent(flow) || [EARLIER_MARK, SPOOFED_MARK].contains(&(flow.mark & MARK_MASK));
    if let Err(error) = conntrack::forget(netns, ours) {
        tracing::debug!(%error, "conntrack entries of a pod that has left the mesh are left to expire");
    }
}

/// Whether the packets of a connection go to the agent, whatever its client asked for.
pub(super) fn is_to_agent(flow: &Flow) -> bool {
    let (to, from): (SocketAddr, SocketAddr) = (flow.original.1, flow.reply.0);
    to != from && AgentPorts::WELL_KNOWN.in_pods().contains(&from.port())
}
