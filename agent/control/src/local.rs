//! Configuration from a local YAML file (`LOCAL_XDS_PATH`), with the keys of the config dump. Unknown keys are errors. The
//! file is read once and not followed.

mod dto;

use std::collections::BTreeSet;

use isthmus_model::{Policy, Service, WireError, Workload, admit};

/// The content of a local file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalConfig {
    /// Workloads.
    pub workloads: Vec<Workload>,
    /// Services.
    pub services: Vec<Service>,
    /// Policies; their key is [`Policy::key`].
    pub policies: Vec<Policy>,
}

/// Why a local file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Not YAML of this shape. The text names the field, the value and the line.
    #[error("local configuration: {0}")]
    Yaml(#[from] yaml_serde::Error),
    /// A workload without a key.
    #[error("local configuration: workloads[{0}] has neither uid nor name; set one of them")]
    Nameless(usize),
    /// An object that could never work.
    #[error("local configuration: {kind}[{at}].{error}")]
    Refused {
        /// The list it is in.
        kind: &'static str,
        /// Its position there, from 0.
        at: usize,
        /// What is wrong.
        error: WireError,
    },
    /// Two objects with the same key.
    #[error("local configuration: {what} {key:?} is defined twice")]
    Twice {
        /// Kind of object.
        what: &'static str,
        /// Its key.
        key: String,
    },
}

/// Reads a local file.
///
/// # Errors
/// When anything in it is not understood; nothing of it is used then.
pub fn load(text: &str) -> Result<LocalConfig, LocalError> {
    // An empty document is an empty configuration.
    let file: dto::File = yaml_serde::from_str::<Option<dto::File>>(text)?.unwrap_or_default();
    let dto::File { workloads, services, policies } = file;
    let workloads = workloads
        .into_iter()
        .enumerate()
        .map(|(at, workload)| workload.into_model().ok_or(LocalError::Nameless(at)))
        .collect::<Result<Vec<Workload>, _>>()?;
    let workloads = admitted("workloads", workloads, admit::workload)?;
    let services = admitted("services", services.into_iter().map(dto::Service::into_model), admit::service)?;
    let policies = admitted("policies", policies.into_iter().map(dto::Policy::into_model), admit::policy)?;
    unique("workload", workloads.iter().map(|workload| workload.uid.to_string()))?;
    unique("service", services.iter().map(|service| service.key().to_string()))?;
    unique("policy", policies.iter().map(|policy| policy.key().to_string()))?;
    Ok(LocalConfig { workloads, services, policies })
}

/// What the control plane could not send either is refused here too.
fn admitted<T>(
    kind: &'static str,
    read: impl IntoIterator<Item = T>,
    admit: impl Fn(T) -> Result<T, WireError>,
) -> Result<Vec<T>, LocalError> {
    let admit = |(at, value)| admit(value).map_err(|error| LocalError::Refused { kind, at, error });
    read.into_iter().enumerate().map(admit).collect()
}

fn unique(what: &'static str, keys: impl Iterator<Item = String>) -> Result<(), LocalError> {
    let mut seen = BTreeSet::new();
    for key in keys {
        if !seen.insert(key.clone()) {
            return Err(LocalError::Twice { what, key });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
