//! Arguments → role → exit code. `proxy …` and no argument at all mean `agent`, so that the existing chart's arguments
//! (`proxy ztunnel`) work.

use std::process::ExitCode;

use crate::config;
use crate::config::source::{ConfigErrors, Strings};
use crate::role;

/// Bad configuration (`EX_USAGE`): nothing was touched.
const USAGE: u8 = 64;

const HELP: &str = "\
isthmus: node agent, node role and east-west gateway of an ambient mesh

usage:
  isthmus [agent|proxy] [...]   carry the pods' traffic (ztunnel's environment variables; further arguments are ignored)
  isthmus node                  enrol the pods of this node (istio-cni's environment variables)
  isthmus gateway               join networks: the east-west gateway
  isthmus version
  isthmus help

Exit codes: 0 after a graceful stop, 1 when it could not start or broke, 64 for bad arguments or configuration.
";

/// Runs the process.
pub fn main(mut args: impl Iterator<Item = String>, strings: &dyn Strings) -> ExitCode {
    match args.next().as_deref() {
        None | Some("agent" | "proxy") => start(strings, config::agent::read, role::agent::run),
        Some("node") => start(strings, config::node::read, role::node::run),
        Some("gateway") => start(strings, config::gateway::read, role::gateway::run),
        Some("version" | "--version" | "-V") => {
            println!("isthmus {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Some(other) => {
            eprintln!("unknown argument {other:?}\n{HELP}");
            ExitCode::from(1)
        }
    }
}

/// Reads everything, then starts the log, then runs: a configuration error ends the process before it touched anything.
fn start<C>(
    strings: &dyn Strings,
    read: impl Fn(&dyn Strings) -> Result<C, ConfigErrors>,
    run: impl FnOnce(C, isthmus_rt::log::Handle) -> Result<(), role::RunError>,
) -> ExitCode {
    let logged = config::log(strings).and_then(|log| {
        isthmus_rt::log::init(log.format, &log.filter).map_err(|error| ConfigErrors(vec![error.to_string()]))
    });
    let config = match read(strings) {
        Ok(config) => config,
        Err(errors) => {
            for line in errors.0 {
                eprintln!("configuration: {line}");
            }
            return ExitCode::from(USAGE);
        }
    };
    let Ok(log) = logged else { return ExitCode::from(USAGE) };
    match run(config, log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "stopped");
            eprintln!("isthmus: {error}");
            ExitCode::from(1)
        }
    }
}
