//! Arguments that say what a world is made of, as a user types them.

use std::path::PathBuf;

use clap::Args;

use crate::binaries::AgentProgram;
use crate::plan::Topology;

/// What a world is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(crate) struct WorldArgs {
    /// Where the control planes are.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) topology: Topology,
    /// Kubernetes manifests to build the clusters from: `common/`, `east/` and `west/` under this folder [default: the
    /// repository's own]
    #[arg(long, value_name = "PATH")]
    pub(crate) manifests: Option<PathBuf>,
    /// Another program as the agent of a cluster or of one node, started as the chart starts ztunnel: `proxy ztunnel`
    /// and the same environment. May be given several times; a node's own goes before its cluster's.
    #[arg(long, value_name = "CLUSTER-OR-NODE=PATH")]
    pub(crate) agent_program: Vec<AgentProgram>,
}

/// A whole run: up, check, down.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) world: WorldArgs,
    /// Prints the report as JSON; progress still goes to standard error.
    #[arg(long)]
    pub(crate) json: bool,
}
