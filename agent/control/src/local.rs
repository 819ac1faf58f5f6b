//! Configuration from a local YAML file, in the format of `LOCAL_XDS_PATH`: the names of the config dump, every name
//! that is not known an error. Read once; nothing is watched.

mod dto;

use std::collections::BTreeSet;

use isthmus_model::{Policy, Service, Workload};

/// What a local file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalConfig {
    /// Workloads.
    pub workloads: Vec<Workload>,
    /// Services.
    pub services: Vec<Service>,
    /// Policies; their key is [`Policy::key`].
    pub policies: Vec<Policy>,
}

/// Why a local file was refused.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// It is not YAML of this shape. The text names the field, the value and the line.
    #[error("local configuration: {0}")]
    Yaml(#[from] yaml_serde::Error),
    /// A workload that nothing can refer to.
    #[error("local configuration: workloads[{0}]: it needs a uid or a name")]
    Nameless(usize),
    /// Two of one key.
    #[error("local configuration: {what} {key:?} is there twice")]
    Twice {
        /// Kind of thing.
        what: &'static str,
        /// Its key.
        key: String,
    },
}

/// Reads a local file.
///
/// # Errors
/// When anything in it is not understood; nothing is taken then.
pub fn load(text: &str) -> Result<LocalConfig, LocalError> {
    // An empty document is an empty configuration.
    let file: dto::File = yaml_serde::from_str::<Option<dto::File>>(text)?.unwrap_or_default();
    let dto::File { workloads, services, policies } = file;
    let workloads = workloads
        .into_iter()
        .enumerate()
        .map(|(at, workload)| workload.into_model().ok_or(LocalError::Nameless(at)))
        .collect::<Result<Vec<Workload>, _>>()?;
    let services: Vec<Service> = services.into_iter().map(dto::Service::into_model).collect();
    let policies: Vec<Policy> = policies.into_iter().map(dto::Policy::into_model).collect();
    unique("workload", workloads.iter().map(|workload| workload.uid.to_string()))?;
    unique("service", services.iter().map(|service| service.key().to_string()))?;
    unique("policy", policies.iter().map(|policy| policy.key().to_string()))?;
    Ok(LocalConfig { workloads, services, policies })
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
