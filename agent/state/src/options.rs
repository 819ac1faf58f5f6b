//! Where this agent runs and how it logs: the settings that state depends on. Fixed for the life of the process; knows
//! nothing of environment variables or files.

use isthmus_model::{AgentPorts, ClusterId, Namespace, NetworkId, NodeName, Workload};

/// Settings of the agent that decisions depend on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// The network of this node.
    pub own_network: NetworkId,
    /// The cluster of this node.
    pub own_cluster: ClusterId,
    /// This node; empty when it is not known.
    pub own_node: NodeName,
    /// The namespace whose policies may apply to the whole mesh; empty when it is not known.
    pub root_namespace: Namespace,
    /// Ports of the agent, to which no connection may lead.
    pub ports: AgentPorts,
    /// Whether dry-run policies are logged at info instead of debug (`AUTHZ_POLICY_INFO_LOGGING`).
    pub log_dry_run_at_info: bool,
}

impl Options {
    /// Whether a workload runs on this node. An agent that does not know its node takes every workload for its own.
    pub(crate) fn is_on_own_node(&self, workload: &Workload) -> bool {
        self.own_node.is_empty() || workload.node == self.own_node
    }
}
