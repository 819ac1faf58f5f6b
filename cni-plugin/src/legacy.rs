//! ADD under the versions 0.1.0 and 0.2.0 of the specification, whose results have one address per family (`ip4`, `ip6`).
//! The protocol library does not have them. The result of the earlier plugins is passed on as it came.

use std::path::PathBuf;

use isthmus_proto::cni::IpConfig;
use rscni_plugin::error::Error;
use rscni_plugin::version::SpecVersion;
use serde_json::{Map, Value, json};

use crate::command::{IsthmusCni, event_address};

/// The first version with a list of addresses.
const LISTS: SpecVersion = SpecVersion::new(0, 3, 0);

/// An ADD of an old version.
pub(crate) struct Add {
    result: Value,
    ips: Vec<IpConfig>,
}

/// Every version that the plugin speaks.
pub(crate) fn versions() -> Vec<SpecVersion> {
    [(0, 1, 0), (0, 2, 0), (0, 3, 0), (0, 3, 1), (0, 4, 0), (1, 0, 0), (1, 1, 0)]
        .map(|(major, minor, patch)| SpecVersion::new(major, minor, patch))
        .into()
}

impl Add {
    /// `None` when the configuration is of a later version.
    ///
    /// # Errors
    /// When an address of the earlier result cannot be understood.
    pub(crate) fn of(stdin: &[u8]) -> Result<Option<Self>, Error> {
        let config: Map<String, Value> =
            serde_json::from_slice(stdin).map_err(|error| Error::FailedToDecode(error.to_string()))?;
        // The first version has no such key.
        let text = config.get("cniVersion").and_then(Value::as_str).filter(|text| !text.is_empty());
        let text = text.unwrap_or("0.1.0");
        let version: SpecVersion = text.parse()?;
        if version >= LISTS {
            return Ok(None);
        }
        if !versions().contains(&version) {
            return Err(Error::IncompatibleVersion(format!(
                "config is {text:?}, which the plugin does not support"
            )));
        }
        let mut result = match config.get("prevResult") {
            Some(Value::Object(previous)) => previous.clone(),
            _ => Map::new(),
        };
        let mut ips = Vec::new();
        for family in ["ip4", "ip6"] {
            let Some(Value::Object(found)) = result.get(family) else { continue };
            let of = |key: &str| found.get(key).and_then(Value::as_str).unwrap_or_default();
            let address = of("ip").parse().map_err(|error| {
                Error::InvalidNetworkConfig(format!("stdin field \"prevResult.{family}.ip\": {error}"))
            })?;
            ips.push(event_address(address, None, of("gateway").to_owned()));
        }
        result.insert("cniVersion".to_owned(), json!(text));
        Ok(Some(Self { result: Value::Object(result), ips }))
    }

    /// Runs it. The result for the runtime.
    ///
    /// # Errors
    /// As those of the later versions.
    pub(crate) fn run(self, plugin: &IsthmusCni) -> Result<Value, Error> {
        let text = |name: &str| std::env::var(name).unwrap_or_default();
        plugin.add_pod(&PathBuf::from(text("CNI_NETNS")), &text("CNI_ARGS"), self.ips)?;
        Ok(self.result)
    }
}
