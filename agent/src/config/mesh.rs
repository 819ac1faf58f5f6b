//! `ProxyConfig`: the part of the mesh configuration that the chart hands over as YAML (`PROXY_CONFIG`, or the
//! `defaultConfig` of the mesh config file). Unknown keys only warn: newer control planes add some.

use std::collections::BTreeMap;

use yaml_serde::Value;

/// What the agent uses of a `ProxyConfig`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProxyConfig {
    /// Address of the control plane, `host:port`.
    pub discovery_address: Option<String>,
    /// Admin port.
    pub admin_port: Option<u16>,
    /// Metrics port.
    pub stats_port: Option<u16>,
    /// Worker threads; 0 means all cores.
    pub concurrency: Option<u16>,
    /// Variables for the node metadata, and settings that the environment does not give.
    pub metadata: BTreeMap<String, String>,
    /// Keys that were not understood.
    pub unknown: Vec<String>,
}

/// Reads a `ProxyConfig` document.
///
/// # Errors
/// A line that names the key and the value that do not fit.
pub fn proxy_config(text: &str) -> Result<ProxyConfig, String> {
    let document: Value = yaml_serde::from_str(text).map_err(|error| format!("it is not YAML: {error}"))?;
    let mut config = ProxyConfig::default();
    let map = match document {
        Value::Null => return Ok(config),
        Value::Mapping(map) => map,
        other => return Err(format!("it is not a mapping but {}", shown(&other))),
    };
    for (key, value) in map {
        let key =
            key.as_str().map(str::to_owned).ok_or_else(|| format!("key {} is not a text", shown(&key)))?;
        match key.as_str() {
            "discoveryAddress" => config.discovery_address = Some(string(&key, &value)?),
            "proxyAdminPort" => config.admin_port = Some(number(&key, &value)?),
            "statsPort" => config.stats_port = Some(number(&key, &value)?),
            "concurrency" => config.concurrency = Some(number(&key, &value)?),
            "proxyMetadata" => config.metadata = strings(&key, &value)?,
            _ => config.unknown.push(key),
        }
    }
    Ok(config)
}

/// Reads `defaultConfig` out of a mesh config file.
///
/// # Errors
/// As [`proxy_config`].
pub fn mesh_default_config(text: &str) -> Result<ProxyConfig, String> {
    let document: Value = yaml_serde::from_str(text).map_err(|error| format!("it is not YAML: {error}"))?;
    match document.get("defaultConfig") {
        None => Ok(ProxyConfig::default()),
        Some(inner) => proxy_config(&yaml_serde::to_string(inner).map_err(|error| error.to_string())?),
    }
}

/// Reads `rootNamespace` out of a mesh config file; what is wrong with the file is told by [`mesh_default_config`].
pub fn root_namespace(text: &str) -> Option<String> {
    let document: Value = yaml_serde::from_str(text).ok()?;
    document.get("rootNamespace")?.as_str().filter(|name| !name.is_empty()).map(str::to_owned)
}

fn string(key: &str, value: &Value) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| format!("{key}: {} is not a text", shown(value)))
}

fn number(key: &str, value: &Value) -> Result<u16, String> {
    let fits = value.as_u64().and_then(|number| u16::try_from(number).ok());
    fits.ok_or_else(|| format!("{key}: {} is not a number from 0 to 65535", shown(value)))
}

fn strings(key: &str, value: &Value) -> Result<BTreeMap<String, String>, String> {
    let map = match value {
        Value::Null => return Ok(BTreeMap::new()),
        Value::Mapping(map) => map,
        other => return Err(format!("{key}: {} is not a mapping", shown(other))),
    };
    let pair = |(name, value): (&Value, &Value)| {
        let name = name.as_str().ok_or_else(|| format!("{key}: key {} is not a text", shown(name)))?;
        Ok((name.to_owned(), string(&format!("{key}.{name}"), value)?))
    };
    map.iter().map(pair).collect()
}

/// A value as it could have been written, in one line.
fn shown(value: &Value) -> String {
    let text = yaml_serde::to_string(value).unwrap_or_else(|_| format!("{value:?}"));
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_keys_are_read_and_unknown_ones_remembered() {
        let config = proxy_config(
            "discoveryAddress: istiod:15012\nconcurrency: 2\ntracing: {}\nproxyMetadata: {A: b}",
        )
        .unwrap();
        assert_eq!(config.discovery_address.as_deref(), Some("istiod:15012"));
        assert_eq!(config.concurrency, Some(2));
        assert_eq!(config.unknown, ["tracing"]);
        assert_eq!(config.metadata["A"], "b");
        assert_eq!(proxy_config("").unwrap(), ProxyConfig::default());
        assert_eq!(mesh_default_config("defaultConfig: {statsPort: 1}").unwrap().stats_port, Some(1));
        assert_eq!(root_namespace("rootNamespace: mesh").as_deref(), Some("mesh"));
        assert_eq!(root_namespace("defaultConfig: {}"), None);
    }

    #[test]
    fn a_bad_value_is_named() {
        for (text, named) in [
            ("statsPort: 70000", "statsPort: 70000 is not"),
            ("statsPort: [a, b]", "statsPort: - a - b is not"),
            ("proxyMetadata: {A: 1}", "proxyMetadata.A: 1 is not"),
            ("[]", "not a mapping but []"),
        ] {
            assert!(proxy_config(text).unwrap_err().contains(named), "{text}");
        }
    }
}
