//! The command line. What a user types is documented here; the hidden subcommands are the processes of the world.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::launch::{ChangeArgs, RunArgs, WorldArgs};
use crate::scenario::ScenarioArgs;
use crate::world;
use playground_k8s::api;
use playground_node::{cluster_dns, kube_proxy, kubelet, pod_init};
use playground_workloads::{helloworld, request};

/// Two Kubernetes-like clusters in network namespaces, joined by HBONE.
///
/// Without a subcommand: builds the world, sends 20 requests from each `sleep`, prints what answered and takes
/// everything down again.
#[derive(Debug, Parser)]
#[command(name = "playground", version)]
pub(crate) struct Cli {
    /// Where sockets, logs and keys of the world are kept [default: isthmus-playground in $XDG_RUNTIME_DIR, else
    /// /tmp/isthmus-playground-$UID]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Reads the command line; says what is wrong with it and ends when it is.
pub(crate) fn parse() -> Cli {
    let cli = Cli::parse();
    match cli.misplaced() {
        Some(misplaced) => misplaced.exit(),
        None => cli,
    }
}

impl Cli {
    /// `--dir` may stand anywhere. What is about a whole run means nothing to a subcommand that has the same option.
    fn misplaced(&self) -> Option<clap::Error> {
        if self.command.is_none() || self.run == RunArgs::default() {
            return None;
        }
        let text =
            "options before a subcommand, other than --dir, are for a run without one; put them behind it";
        Some(Self::command().error(ErrorKind::ArgumentConflict, text))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Builds a world that stays until `down`.
    Up(WorldArgs),
    /// Runs a command in a pod: `exec east/sleep -- curl -sS helloworld.sample:5000/hello`
    Exec {
        /// `<cluster>/<pod>`; a beginning of the pod's name is enough.
        pod: String,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Runs a command that reaches the API server of a cluster: `kube east -- kubectl get pods -A`
    ///
    /// The world's network cannot be reached from outside; the command runs on it, with `KUBECONFIG` set.
    Kube {
        /// `east` or `west`.
        cluster: String,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Lists the pods of the world, and how to reach the API servers.
    Status {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Prints the log of a component or pod: `logs east/istiod`; without a name, lists what has a log.
    Logs {
        /// `<cluster>/<component>`; a beginning of the name is enough.
        component: Option<String>,
    },
    /// Applies a manifest and tells what the agents were told:
    /// `apply -f deploy/manifests/policies/only-east-sleep.yaml --cluster west`
    Apply(ChangeArgs),
    /// Deletes the objects of a manifest, and tells what the agents were told.
    Delete(ChangeArgs),
    /// Ends the world.
    Down,
    /// Plays a scenario in a world of its own: up, a change, checks, down. Without a name: every scenario.
    Scenario(ScenarioArgs),
    /// A world that lives as long as its standard input is open.
    #[command(hide = true)]
    Hold(WorldArgs),

    /// Whether a world could be made here: says why not.
    #[command(hide = true)]
    TryEnter,
    /// A plain HTTP client, for use inside pods.
    #[command(hide = true)]
    Request(request::Options),
    /// The first process of a world.
    #[command(hide = true)]
    World(world::Options),
    /// Enters a pod and runs a command there.
    #[command(hide = true)]
    Enter {
        /// A process of the pod, as this process sees it.
        #[arg(long)]
        pid: u32,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// The Kubernetes API server.
    #[command(hide = true)]
    Apiserver(api::Options),
    /// The control plane.
    #[command(hide = true)]
    Istiod(playground_istiod::Options),
    /// The kubelet of one node.
    #[command(hide = true)]
    Kubelet(kubelet::Options),
    /// Service addresses of one node.
    #[command(hide = true)]
    KubeProxy(kube_proxy::Options),
    /// The DNS server of a cluster.
    #[command(hide = true)]
    ClusterDns(cluster_dns::Options),
    /// The first thing that runs in a pod.
    #[command(hide = true)]
    PodInit(pod_init::Options),
    /// The sample's HTTP server.
    #[command(hide = true)]
    Helloworld(helloworld::Options),
    /// Does nothing until it is told to end.
    #[command(hide = true)]
    Sleep,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Topology;

    fn line(args: &[&str]) -> Result<Cli, clap::Error> {
        let cli = Cli::try_parse_from(std::iter::once(&"playground").chain(args))?;
        cli.misplaced().map_or(Ok(cli), Err)
    }

    #[test]
    fn the_folder_may_be_named_before_the_subcommand_and_behind_it() {
        for args in [&["--dir", "/w", "up"][..], &["up", "--dir", "/w"], &["--dir", "/w"]] {
            assert_eq!(line(args).unwrap().dir, Some("/w".into()), "{args:?}");
        }
    }

    #[test]
    fn other_options_belong_behind_the_subcommand() {
        let refused = line(&["--topology", "primary-remote", "up"]).unwrap_err();
        assert!(refused.to_string().contains("put them behind it"), "{refused}");
        let args = line(&["up", "--topology", "primary-remote"]).unwrap();
        assert!(
            matches!(args.command, Some(Command::Up(world)) if world.topology == Topology::PrimaryRemote)
        );
        assert!(line(&["--json"]).unwrap().run.json);
    }
}
