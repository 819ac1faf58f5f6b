//! The command line: selects the role and maps its outcome to an exit code. `proxy …` and no argument mean `agent`, so that
//! the arguments of ztunnel's chart (`proxy ztunnel`) work. Under the names `install-cni`, as istio-cni's chart calls it, and
//! `gateway` the program has that role.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use isthmus_rt::log::Handle;

use crate::config;
use crate::config::deployed::Deployed;
use crate::config::flags::WithFlags;
use crate::config::source::{ConfigErrors, Strings};
use crate::role::{self, RunError};

/// Invalid configuration (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;
/// How long the exit waits for a slow reader of the log.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The installer, as a role and as the name of the program.
const INSTALLER: &str = "install-cni";

/// The gateway, as a role and as the name of the program.
const GATEWAY: &str = "gateway";

const HELP: &str = "\
isthmus: node agent, node role and east-west gateway of an ambient mesh

Usage:
  isthmus [agent | proxy] [arguments]   Run the data plane of a node (in place of ztunnel). This is the default;
                                        further arguments are ignored, so that ztunnel's chart works unchanged;
                                        `proxy waypoint`, as istiod deploys class istio-east-west, is a gateway.
  isthmus node                          Enrol the pods of a node (in place of istio-cni's agent).
  isthmus install-cni [flags]           Install the CNI plugin on a node, and enrol its pods if AMBIENT_ENABLED is true
                                        (in place of istio-cni). A program of the name install-cni does the same.
  isthmus gateway                       Run an east-west gateway between networks.
  isthmus version                       Print version, revision and compiler (also --version, -V).
  isthmus version --handover            Print the version of the hand-over: an agent hands its connections over to a
                                        successor of the same one.
  isthmus help                          Print this help (also --help, -h).

All settings are environment variables: ztunnel's for agent and gateway, istio-cni's for node and install-cni; these are
listed in agent/docs/node.md. install-cni takes each as a flag too: CNI_CONF_NAME is --cni-conf-name. A feature that is not
supported is an error when its variable asks for it. The most used variables of the agent:

  Identity of the process
    NODE_NAME, CLUSTER_ID, NETWORK         node, cluster and network that it runs in
    TRUST_DOMAIN, CLUSTER_DOMAIN           trust domain and DNS domain of the cluster
  Control plane
    XDS_ADDRESS, CA_ADDRESS                xDS server and CA, as [https://]host:port
    XDS_ROOT_CA, CA_ROOT_CA                roots that verify them: the path of a PEM file, or PEM text
    AUTH_TOKEN                             bearer token: the path of a file, or a JSON Web Token
    LOCAL_XDS_PATH                         static configuration: the path of a YAML file
  Pods
    INPOD_UDS                              Unix socket on which the node role announces pods
    ISTIO_META_DNS_CAPTURE                 whether pods get a DNS proxy (true, false)
    IPV6_ENABLED                           whether IPv6 is used (true, false)
  Shutdown
    HANDOVER                               whether connections are handed over to a successor (true, false)
    HANDOVER_UDS                           Unix socket for it, instead of the one beside INPOD_UDS
    TERMINATION_GRACE_PERIOD_SECONDS       grace period of the agent's pod in seconds
    CONNECTION_TERMINATION_DEADLINE        how long connections may drain (5m, 180s), instead of the default from it
  Log
    RUST_LOG                               filter: level, scope=level or scope:level, separated by commas
    LOG_FORMAT                             plain or json

HTTP endpoints of the agent (ports can be changed by proxyAdminPort and statsPort of PROXY_CONFIG):
  127.0.0.1:15000   /config_dump, /logging, /quitquitquit; / describes them
  0.0.0.0:15020     /metrics, /stats/prometheus
  0.0.0.0:15021     /healthz/ready

Signals:
  SIGTERM, SIGINT   Drain connections, then exit; POST /quitquitquit does the same.
  SIGINT            During a drain: exit at once.

Exit codes:
  0    stopped on request
  1    could not start, or failed; unknown argument
  64   invalid configuration: every invalid value is named on standard error
";

/// Runs the process; the first of `args` is the name of the program.
pub fn main(mut args: impl Iterator<Item = String>, strings: &dyn Strings) -> ExitCode {
    let program = args.next().unwrap_or_default();
    match Path::new(&program).file_name().and_then(|name| name.to_str()) {
        Some(INSTALLER) => return install(args, strings),
        Some(GATEWAY) => return start(strings, config::gateway::read, role::gateway::run),
        _ => {}
    }
    match args.next().as_deref() {
        Some(INSTALLER) => install(args, strings),
        None | Some("agent") => start(strings, config::agent::read, role::agent::run),
        Some("proxy") => proxy(&args.collect::<Vec<_>>(), strings),
        Some("node") => start(strings, config::node::read, role::node::run),
        Some(GATEWAY) => start(strings, config::gateway::read, role::gateway::run),
        Some("version" | "--version" | "-V") if args.next().as_deref() == Some("--handover") => {
            println!("{}", isthmus_handover::VERSION);
            ExitCode::SUCCESS
        }
        Some("version" | "--version" | "-V") => version(),
        Some("help" | "--help" | "-h") => help(),
        Some(other) => {
            eprintln!("unknown argument {other:?}\n{HELP}");
            ExitCode::FAILURE
        }
    }
}

fn version() -> ExitCode {
    use isthmus_admin::build::{REVISION, RUSTC, VERSION};
    println!("isthmus {VERSION} (revision {REVISION}, {RUSTC})");
    ExitCode::SUCCESS
}

fn help() -> ExitCode {
    print!("{HELP}");
    ExitCode::SUCCESS
}

/// The installer: settings are flags too.
fn install(args: impl Iterator<Item = String>, strings: &dyn Strings) -> ExitCode {
    let mut args = args.peekable();
    match args.peek().map(String::as_str) {
        Some("version" | "--version" | "-V") => return version(),
        Some("help" | "--help" | "-h") => return help(),
        _ => {}
    }
    match WithFlags::parse(args, strings) {
        Ok(settings) => start(&settings, config::install::read, role::install::run),
        Err(errors) => invalid(errors),
    }
}

fn invalid(errors: ConfigErrors) -> ExitCode {
    for line in errors.0 {
        eprintln!("configuration: {line}");
    }
    ExitCode::from(USAGE)
}

/// What upstream's image does with these arguments: `proxy ztunnel` in ztunnel's chart, `proxy waypoint` and
/// `proxy router` where istiod deployed a Gateway with this image.
fn proxy(args: &[String], strings: &dyn Strings) -> ExitCode {
    let Some(role @ ("waypoint" | "router" | "sidecar")) = args.first().map(String::as_str) else {
        return start(strings, config::agent::read, role::agent::run);
    };
    match Deployed::east_west(strings, args) {
        Some(deployed) if role == "waypoint" => start(&deployed, config::gateway::read, role::gateway::run),
        _ => {
            eprintln!(
                "isthmus: proxy {role} is an HTTP proxy, which this image is not: of istiod's gateway classes it serves \
                 istio-east-west only; give this Gateway another image (annotation sidecar.istio.io/proxyImage)"
            );
            ExitCode::FAILURE
        }
    }
}

/// Reads all settings, starts the log, then runs the role: an invalid setting ends the process before it has any effect.
fn start<C>(
    strings: &dyn Strings,
    read: impl Fn(&dyn Strings) -> Result<C, ConfigErrors>,
    run: impl FnOnce(C, Handle) -> Result<(), RunError>,
) -> ExitCode {
    let (config, settings) = match read(strings).and_then(|c| Ok((c, config::log::read(strings)?))) {
        Ok(both) => both,
        Err(errors) => return invalid(errors),
    };
    let log = match isthmus_rt::log::init(settings.format, &settings.filter) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("isthmus: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = run(config, log.clone());
    if let Err(error) = &outcome {
        tracing::error!(%error, "the role failed, exiting");
        eprintln!("isthmus: {error}");
    }
    if !log.flush(FLUSH_TIMEOUT) {
        eprintln!("isthmus: the reader of the log is too slow, its last lines are lost");
    }
    if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn code_of(args: &[&str], env: &[(&str, &str)]) -> String {
        let env: BTreeMap<_, _> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        // `ExitCode` has no accessor; its debug form is the only way to compare it.
        format!("{:?}", main(args.iter().map(ToString::to_string), &env))
    }

    fn code(args: &[&str], env: &[(&str, &str)]) -> String {
        code_of(&[&["isthmus"], args].concat(), env)
    }

    #[test]
    fn exit_codes_are_those_of_the_help() {
        let named = |code: u8| format!("{:?}", ExitCode::from(code));
        for asked in ["version", "--version", "-V", "help", "--help", "-h"] {
            assert_eq!(code(&[asked], &[]), named(0), "{asked}");
        }
        for refused in [&["prox"][..], &["proxy", "waypoint"], &["proxy", "router"], &["proxy", "sidecar"]] {
            assert_eq!(code(refused, &[("POD_LABELS_PATH", "/nowhere")]), named(1), "{refused:?}");
        }
        let network = [("ISTIO_META_REQUESTED_NETWORK_VIEW", "west"), ("RUST_LOG", "loud")];
        assert_eq!(
            code(&["proxy", "waypoint"], &network),
            named(64),
            "an east-west gateway reads its settings"
        );
        for role in ["agent", "proxy", "node", "gateway"] {
            assert_eq!(code(&[role, "ztunnel"], &[("RUST_LOG", "loud")]), named(64), "{role}");
        }
        assert_eq!(code(&["install-cni", "--loud"], &[]), named(64));
        assert_eq!(code(&["install-cni", "version"], &[]), named(0));
        assert_eq!(code_of(&["/usr/local/bin/gateway"], &[("RUST_LOG", "loud")]), named(64));
        assert_eq!(code_of(&["/usr/local/bin/install-cni", "--help"], &[]), named(0));
        assert_eq!(
            code_of(&["/usr/local/bin/install-cni", "--log_output_level=info"], &[]),
            named(64),
            "no NODE_NAME"
        );
    }
}
