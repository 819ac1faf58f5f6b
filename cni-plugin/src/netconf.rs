//! The runtime's input as typed values: our keys of the network configuration and the pod named in `CNI_ARGS`. Every
//! defect is one error that names the field. It does not know how the values are used.

use std::collections::HashMap;
use std::path::PathBuf;

use isthmus_proto::enroll::{Rules, Selector, default_selectors};
use rscni_plugin::error::Error;
use rscni_plugin::types::{Dns, Interface, IpConfig, Ipam, Route, RuntimeConf};
use rscni_plugin::version::SpecVersion;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::log::Level;

const DEFAULT_RUN_DIR: &str = "/var/run/istio-cni";

/// Our keys of the network configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// `plugin_log_level`.
    pub(crate) log_level: Level,
    /// `cni_agent_run_dir`: the sockets, the kubeconfig and the log file are here.
    pub(crate) run_dir: PathBuf,
    /// `ambient_enabled`. The plugin has no other purpose, so only an explicit `false` turns it off.
    pub(crate) enabled: bool,
    /// `pod_namespace`: where the node role runs.
    pub(crate) node_namespace: String,
    /// `enable_ambient_detection_retry`: ask the API server up to 30 times, one second apart, instead of once.
    pub(crate) retry: bool,
    /// `enablement_selectors` and `exclude_namespaces`.
    pub(crate) rules: Rules,
}

/// The pod that `CNI_ARGS` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodName {
    /// `K8S_POD_NAMESPACE`.
    pub(crate) namespace: String,
    /// `K8S_POD_NAME`.
    pub(crate) name: String,
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        Self {
            log_level: Level::Info,
            run_dir: DEFAULT_RUN_DIR.into(),
            enabled: true,
            node_namespace: String::new(),
            retry: false,
            // As the node role has it: no namespace is excluded unless it is named.
            rules: Rules { exclude_namespaces: Vec::new(), ..Rules::default() },
        }
    }
}

impl Settings {
    /// Reads the network configuration.
    ///
    /// # Errors
    /// When it is not a JSON object (code 6), or a key has no usable value (code 7, naming the key).
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let mut object: Map<String, Value> = serde_json::from_slice(bytes)
            .map_err(|error| Error::FailedToDecode(format!("stdin is not a JSON object: {error}")))?;
        standard_keys(&object)?;
        let default = Self::default();
        let node_namespace: String = key(&mut object, "pod_namespace")?.unwrap_or_default();
        let system_namespace =
            if node_namespace.is_empty() { default.rules.system_namespace } else { node_namespace.clone() };
        Ok(Self {
            log_level: log_level(&mut object).unwrap_or(default.log_level),
            run_dir: key(&mut object, "cni_agent_run_dir")?.unwrap_or(default.run_dir),
            enabled: key(&mut object, "ambient_enabled")?.unwrap_or(default.enabled),
            retry: key(&mut object, "enable_ambient_detection_retry")?.unwrap_or(default.retry),
            rules: Rules {
                selectors: key::<Vec<Selector>>(&mut object, "enablement_selectors")?
                    .unwrap_or_else(default_selectors),
                exclude_namespaces: key(&mut object, "exclude_namespaces")?.unwrap_or_default(),
                system_namespace,
            },
            node_namespace,
        })
    }
}

/// One optional key; `null` is absent, and an empty string too where the key is text.
fn key<T: DeserializeOwned>(object: &mut Map<String, Value>, name: &str) -> Result<Option<T>, Error> {
    match object.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(value) => typed(name, value).map(Some),
    }
}

/// A value that is no level is as good as none.
fn log_level(object: &mut Map<String, Value>) -> Option<Level> {
    Level::parse(object.remove("plugin_log_level")?.as_str()?)
}

fn typed<T: DeserializeOwned>(name: &str, value: Value) -> Result<T, Error> {
    serde_json::from_value(value).map_err(|error| bad(name, &error))
}

fn bad(name: &str, reason: &dyn std::fmt::Display) -> Error {
    Error::InvalidNetworkConfig(format!("stdin field {name:?}: {reason}"))
}

/// The keys of the specification, checked one by one, because the protocol library reads them all at once and cannot say
/// which one was wrong.
fn standard_keys(object: &Map<String, Value>) -> Result<(), Error> {
    for name in ["name", "type"] {
        let text = typed::<String>(name, object.get(name).cloned().unwrap_or_default())?;
        if text.is_empty() {
            return Err(bad(name, &"is empty"));
        }
    }
    for (name, value) in object.iter().filter(|(_, value)| !value.is_null()) {
        let value = value.clone();
        match name.as_str() {
            "cniVersion" => drop(typed::<SpecVersion>(name, value)?),
            "capabilities" => drop(typed::<HashMap<String, bool>>(name, value)?),
            "runtimeConfig" => drop(typed::<RuntimeConf>(name, value)?),
            "ipam" if value != Value::Object(Map::new()) => drop(typed::<Ipam>(name, value)?),
            "dns" => drop(typed::<Dns>(name, value)?),
            "prevResult" => previous(typed(name, value)?)?,
            _ => {}
        }
    }
    Ok(())
}

/// The fields of `prevResult`, down to the entry of the list.
fn previous(result: Map<String, Value>) -> Result<(), Error> {
    fn each<T: DeserializeOwned>(name: &str, value: Value) -> Result<(), Error> {
        for (at, entry) in typed::<Vec<Value>>(name, value)?.into_iter().enumerate() {
            typed::<T>(&format!("{name}[{at}]"), entry)?;
        }
        Ok(())
    }
    for (name, value) in result.into_iter().filter(|(_, value)| !value.is_null()) {
        let path = format!("prevResult.{name}");
        match name.as_str() {
            "interfaces" => each::<Interface>(&path, value)?,
            "ips" => each::<IpConfig>(&path, value)?,
            "routes" => each::<Route>(&path, value)?,
            "dns" => drop(typed::<Dns>(&path, value)?),
            _ => {}
        }
    }
    Ok(())
}

// === impl PodName ===

impl PodName {
    /// The pod in `CNI_ARGS`; `None` when the sandbox is not a Kubernetes pod.
    ///
    /// # Errors
    /// When a name could not be one of Kubernetes' (code 4): it becomes part of a URL.
    pub(crate) fn parse(args: &str) -> Result<Option<Self>, Error> {
        let (mut namespace, mut name) = ("", "");
        for (key, value) in args.split(';').filter_map(|pair| pair.split_once('=')) {
            match key.trim() {
                "K8S_POD_NAMESPACE" => namespace = value.trim(),
                "K8S_POD_NAME" => name = value.trim(),
                _ => {}
            }
        }
        for (key, value) in [("K8S_POD_NAMESPACE", namespace), ("K8S_POD_NAME", name)] {
            let usable =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
            if !value.bytes().all(usable) || value.starts_with('.') {
                return Err(Error::InvalidEnvValue(format!(
                    "CNI_ARGS: {key}={value:?} is not a Kubernetes name"
                )));
            }
        }
        if namespace.is_empty() || name.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self { namespace: namespace.to_owned(), name: name.to_owned() }))
    }
}

impl std::fmt::Display for PodName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
