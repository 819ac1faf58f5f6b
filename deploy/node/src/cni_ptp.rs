//! The world's basic CNI plugin: an address from the node's range and a veth pair to the node. It stands first in the
//! chain, where a cluster has Cilium or kindnet, and knows nothing of the mesh.
//!
//! This program is the plugin when it is called by the plugin's name. It runs in the node's network namespace.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use ipnet::Ipv4Net;
use isthmus_sys::netns::Netns;
use isthmus_sys::route;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::pod_network::{host, join_pod_side, nth};

mod ipam;

/// The plugin's type.
pub const NAME: &str = "playground-ptp";

/// Versions of the specification that its messages fit.
const VERSIONS: [&str; 2] = ["1.0.0", "1.1.0"];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    cni_version: String,
    /// The node's pod range. The first two addresses are the node's own.
    subnet: Ipv4Net,
    /// Where the addresses in use are remembered.
    state: PathBuf,
}

/// An error object of the specification.
#[derive(Debug)]
struct Failure {
    code: u32,
    error: anyhow::Error,
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        // The first code that is free for a plugin's own errors.
        Self { code: 100, error: error.into() }
    }
}

/// Runs the command that the environment names.
pub fn main() -> ExitCode {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    match command(&variable) {
        Ok(result) => {
            if !result.is_null() {
                println!("{result}");
            }
            ExitCode::SUCCESS
        }
        Err(Failure { code, error }) => {
            println!("{}", json!({"cniVersion": VERSIONS[0], "code": code, "msg": format!("{error:#}")}));
            ExitCode::FAILURE
        }
    }
}

fn command(variable: &dyn Fn(&str) -> String) -> Result<Value, Failure> {
    let command = variable("CNI_COMMAND");
    if command == "VERSION" {
        return Ok(json!({"cniVersion": VERSIONS[0], "supportedVersions": VERSIONS}));
    }
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input)?;
    let config: Config =
        serde_json::from_str(&input).map_err(|error| Failure { code: 6, error: error.into() })?;
    let (container, netns, ifname) =
        (variable("CNI_CONTAINERID"), variable("CNI_NETNS"), variable("CNI_IFNAME"));
    if container.is_empty() {
        return Err(Failure { code: 4, error: anyhow::anyhow!("CNI_CONTAINERID is not set") });
    }
    match command.as_str() {
        "ADD" => add(&config, &container, Path::new(&netns), &ifname),
        "DEL" => {
            route::del_link(&Netns::current()?, &host_interface(&container))?;
            ipam::release(&config.state, &container)?;
            Ok(Value::Null)
        }
        "CHECK" | "STATUS" | "GC" => Ok(Value::Null),
        _ => Err(Failure { code: 4, error: anyhow::anyhow!("CNI_COMMAND {command:?} is not known") }),
    }
}

fn add(config: &Config, container: &str, path: &Path, ifname: &str) -> Result<Value, Failure> {
    let (node, pod) = (Netns::current()?, Netns::open(path)?);
    let gateway = nth(config.subnet, 1);
    let address = ipam::take(&config.state, config.subnet, container).context("no address for the pod")?;
    let link = host_interface(container);
    // The namespace calls its end eth0: that is what the world's routes name.
    if ifname != "eth0" {
        return Err(Failure {
            code: 4,
            error: anyhow::anyhow!("CNI_IFNAME {ifname:?}: only eth0 is possible"),
        });
    }
    route::add_veth(&node, &link, &pod, ifname)?;
    route::add_address(&pod, ifname, host(address))?;
    route::set_up(&pod, ifname)?;
    route::set_up(&node, &link)?;
    join_pod_side(&node, &link, &pod, gateway, address)?;
    Ok(json!({
        "cniVersion": config.cni_version,
        "interfaces": [{"name": link}, {"name": ifname, "sandbox": path}],
        "ips": [{"address": format!("{address}/32"), "gateway": gateway.to_string(), "interface": 1}],
        "routes": [{"dst": "0.0.0.0/0", "gw": gateway.to_string()}],
        "dns": {},
    }))
}

/// The node's end of a pod's pair: the same name for the same sandbox, at most 15 letters.
fn host_interface(container: &str) -> String {
    let mut hasher = DefaultHasher::new();
    container.hash(&mut hasher);
    format!("veth{:010x}", hasher.finish() >> 24)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_fit_and_differ() {
        let (a, b) = (host_interface("a-1"), host_interface("a-2"));
        assert!(a.len() <= 15 && a != b, "{a} {b}");
        assert_eq!(a, host_interface("a-1"));
    }

    #[test]
    fn versions_are_told_without_input() {
        let said = command(&|name| if name == "CNI_COMMAND" { "VERSION".to_owned() } else { String::new() })
            .unwrap();
        assert_eq!(said["supportedVersions"][0], "1.0.0");
    }
}
