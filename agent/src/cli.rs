//! Arguments → role → exit code. `proxy …` and no argument at all mean `agent`, so that the existing chart's arguments
//! (`proxy ztunnel`) work.

use std::process::ExitCode;
use std::time::Duration;

use isthmus_rt::log::Handle;

use crate::config;
use crate::config::source::{ConfigErrors, Strings};
use crate::role::{self, RunError};

/// Bad configuration (`EX_USAGE`): nothing was touched.
const USAGE: u8 = 64;
/// How long the end of the process waits for a slow reader of the log.
const LAST_LINES: Duration = Duration::from_secs(1);

const HELP: &str = "\
isthmus: node agent, node role and east-west gateway of an ambient mesh

usage:
  isthmus [agent|proxy] [...]   carry the pods' traffic (ztunnel's environment variables; further arguments are ignored)
  isthmus node                  enrol the pods of this node (istio-cni's environment variables)
  isthmus gateway               join networks: the east-west gateway
  isthmus version | --version   print the version and the revision it was built from
  isthmus help | --help         print this

The agent's most used variables (all of ztunnel's are read; what is not supported is refused by name):
  NODE_NAME, NETWORK, CLUSTER_ID, TRUST_DOMAIN, CLUSTER_DOMAIN     where it is
  XDS_ADDRESS, CA_ADDRESS, XDS_ROOT_CA, CA_ROOT_CA, AUTH_TOKEN     its control plane
  INPOD_UDS, ISTIO_META_DNS_CAPTURE, IPV6_ENABLED                  its pods
  TERMINATION_GRACE_PERIOD_SECONDS, CONNECTION_TERMINATION_DEADLINE  how long a stop may take
  RUST_LOG (level, scope=level or scope:level, by commas), LOG_FORMAT (plain, json)

Its endpoints:
  127.0.0.1:15000  /config_dump, /logging, /quitquitquit           0.0.0.0:15020  /metrics, /stats/prometheus
  0.0.0.0:15021    /healthz/ready

Signals: SIGTERM and SIGINT (as POST /quitquitquit) drain and end it; a SIGINT while it drains ends it at once.

Exit codes: 0 after it was told to stop; 1 when it could not start or broke, and for an unknown argument; 64 for bad
configuration, every bad value of which is named on standard error.
";

/// Runs the process.
pub fn main(mut args: impl Iterator<Item = String>, strings: &dyn Strings) -> ExitCode {
    match args.next().as_deref() {
        None | Some("agent" | "proxy") => start(strings, config::agent::read, role::agent::run),
        Some("node") => start(strings, config::node::read, role::node::run),
        Some("gateway") => start(strings, config::gateway::read, role::gateway::run),
        Some("version" | "--version" | "-V") => {
            use isthmus_admin::build::{REVISION, RUSTC, VERSION};
            println!("isthmus {VERSION} (revision {REVISION}, {RUSTC})");
            ExitCode::SUCCESS
        }
        Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Some(other) => {
            eprintln!("unknown argument {other:?}\n{HELP}");
            ExitCode::FAILURE
        }
    }
}

/// Reads everything, then starts the log, then runs: a configuration error ends the process before it touched anything.
fn start<C>(
    strings: &dyn Strings,
    read: impl Fn(&dyn Strings) -> Result<C, ConfigErrors>,
    run: impl FnOnce(C, Handle) -> Result<(), RunError>,
) -> ExitCode {
    let (config, settings) = match read(strings).and_then(|c| Ok((c, config::log::read(strings)?))) {
        Ok(both) => both,
        Err(errors) => {
            for line in errors.0 {
                eprintln!("configuration: {line}");
            }
            return ExitCode::from(USAGE);
        }
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
        tracing::error!(%error, "stopped");
        eprintln!("isthmus: {error}");
    }
    if !log.flush(LAST_LINES) {
        eprintln!("isthmus: the last lines of the log were not read and are lost");
    }
    if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn code(args: &[&str], env: &[(&str, &str)]) -> String {
        let env: BTreeMap<_, _> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        // An exit code can be looked at in no other way.
        format!("{:?}", main(args.iter().map(ToString::to_string), &env))
    }

    #[test]
    fn exit_codes_are_those_that_the_help_names() {
        let named = |code: u8| format!("{:?}", ExitCode::from(code));
        for asked in ["version", "--version", "-V", "help", "--help", "-h"] {
            assert_eq!(code(&[asked], &[]), named(0), "{asked}");
        }
        assert_eq!(code(&["prox"], &[]), named(1));
        for role in ["agent", "proxy", "node", "gateway"] {
            assert_eq!(code(&[role, "ztunnel"], &[("RUST_LOG", "loud")]), named(64), "{role}");
        }
    }
}
