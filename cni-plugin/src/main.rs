//! `isthmus-cni`: the chained CNI plugin. It owns the path from the runtime's environment and standard input to an exit
//! code. Which pods belong to the mesh is the rule that it shares with the node role (`isthmus_proto::enroll`); the node
//! role programs the pod's namespace, the plugin never enters it.

mod api;
mod command;
mod event;
mod http;
mod kubeconfig;
mod legacy;
mod log;
mod netconf;
mod stdin;

use std::process::ExitCode;

use rscni_plugin::cni::Plugin;
use rscni_plugin::error::Error;
use rscni_plugin::types::{CNI_COMMAND, ErrorResult};
use rscni_plugin::version::SpecVersion;

use crate::command::IsthmusCni;
use crate::log::Log;
use crate::netconf::Settings;

const ABOUT: &str =
    concat!("isthmus-cni ", env!("CARGO_PKG_VERSION"), ": enrols pods into the mesh, as a chained plugin");

fn main() -> ExitCode {
    let command = std::env::var(CNI_COMMAND).unwrap_or_default();
    // Only ADD reads our own keys. The others must succeed under a configuration that ADD refuses, or a pod could no longer
    // be deleted.
    let mut old = None;
    let settings = match command.as_str() {
        "ADD" => {
            let read =
                stdin::peek().and_then(|bytes| Ok((Settings::parse(&bytes)?, legacy::Add::of(&bytes)?)));
            match read {
                Ok((settings, add)) => {
                    old = add;
                    settings
                }
                Err(error) => return refuse(&error),
            }
        }
        _ => Settings::default(),
    };
    let log = Log::new(settings.log_level, &settings.run_dir);
    let plugin = IsthmusCni::new(settings, log);
    if let Some(add) = old {
        return match add.run(&plugin) {
            Ok(result) => {
                println!("{result}");
                ExitCode::SUCCESS
            }
            Err(error) => refuse(&error),
        };
    }
    match Plugin::new(SpecVersion::CURRENT, legacy::versions()).msg(ABOUT).run(&plugin) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The error result, on standard output as the specification demands.
fn refuse(error: &Error) -> ExitCode {
    let result = ErrorResult::new(SpecVersion::CURRENT, error);
    if let Ok(text) = serde_json::to_string(&result) {
        println!("{text}");
    }
    eprintln!("isthmus-cni: {error}");
    ExitCode::FAILURE
}
