//! `ProxyConfig`: the part of the mesh configuration that the chart hands over as YAML (`PROXY_CONFIG`, or the
//! `defaultConfig` of the mesh config file). Unknown keys only warn: newer control planes add some.

use std::collections::BTreeMap;

use isthmus_identity::trust::BoundRoot;
use isthmus_model::TrustDomain;
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

/// What a mesh config file says of trust.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MeshTrust {
    /// The mesh's trust domain.
    pub domain: Option<TrustDomain>,
    /// Other names of it.
    pub aliases: Vec<TrustDomain>,
    /// Further roots, each with the trust domains it may speak for (`caCertificates`).
    pub roots: Vec<BoundRoot>,
    /// What was understood and is not done.
    pub ignored: Vec<String>,
}

/// Reads `trustDomain`, `trustDomainAliases` and `caCertificates` out of a mesh config file.
///
/// # Errors
/// A line that names the key and the value that do not fit.
pub fn trust(text: &str) -> Result<MeshTrust, String> {
    let document: Value = yaml_serde::from_str(text).map_err(|error| format!("it is not YAML: {error}"))?;
    if !matches!(document, Value::Null | Value::Mapping(_)) {
        return Err(format!("it is not a mapping but {}", shown(&document)));
    }
    let mut found = MeshTrust::default();
    if let Some(value) = document.get("trustDomain") {
        let name = string("trustDomain", value)?;
        found.domain = Some(trust_domain(&name).map_err(|error| format!("trustDomain: {error}"))?);
    }
    found.aliases = domains(&document, "trustDomainAliases", "trustDomainAliases")?;
    for (at, entry) in list(&document, "caCertificates", "caCertificates")?.iter().enumerate() {
        let key = format!("caCertificates[{at}]");
        match (entry.get("pem"), entry.get("spiffeBundleUrl")) {
            (Some(pem), _) => {
                let domains = domains(entry, "trustDomains", &format!("{key}.trustDomains"))?;
                let pem = string(&format!("{key}.pem"), pem)?;
                let roots = BoundRoot::from_pem(&pem, &domains);
                found.roots.extend(roots.map_err(|error| format!("{key}.pem: {error}"))?);
            }
            (None, Some(_)) => {
                found.ignored.push(format!("{key}.spiffeBundleUrl: bundles are not fetched, it"))
            }
            (None, None) => return Err(format!("{key}: neither pem nor spiffeBundleUrl is given")),
        }
    }
    Ok(found)
}

/// A trust domain by its name.
///
/// # Errors
/// When it is none, with the name.
pub fn trust_domain(name: &str) -> Result<TrustDomain, String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if name.is_empty() || !name.bytes().all(fits) {
        return Err(format!("{name:?} is no trust domain"));
    }
    Ok(name.into())
}

fn domains(parent: &Value, key: &str, path: &str) -> Result<Vec<TrustDomain>, String> {
    let read = |value: &Value| {
        let name = string(path, value)?;
        trust_domain(&name).map_err(|error| format!("{path}: {error}"))
    };
    list(parent, key, path)?.iter().map(read).collect()
}

fn list<'a>(parent: &'a Value, key: &str, path: &str) -> Result<&'a [Value], String> {
    match parent.get(key) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Sequence(values)) => Ok(values),
        Some(other) => Err(format!("{path}: {} is not a list", shown(other))),
    }
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
    fn trust_is_read_with_whom_each_root_speaks_for() {
        let ca = isthmus_kit::pki::Ca::new("partner").unwrap();
        let pem = ca.root_pem().replace('\n', "\n      ");
        let text = format!(
            "trustDomain: td\ntrustDomainAliases: [old, partner]\ncaCertificates:\n  - pem: |\n      {pem}\n    \
             trustDomains: [partner]\n  - spiffeBundleUrl: https://a/\ndefaultConfig: {{}}\n"
        );
        let found = trust(&text).unwrap();
        assert_eq!(found.domain, Some("td".into()));
        assert_eq!(found.aliases, ["old".into(), "partner".into()]);
        assert_eq!(found.roots, BoundRoot::from_pem(&ca.root_pem(), &["partner".into()]).unwrap());
        assert_eq!(found.ignored.len(), 1);
        assert_eq!(trust("").unwrap(), MeshTrust::default());
        for (text, named) in [
            ("trustDomain: 7", "trustDomain: 7 is not"),
            ("trustDomain: a/b", "trustDomain: \"a/b\" is no"),
            ("trustDomainAliases: x", "trustDomainAliases: x is not a list"),
            ("trustDomainAliases: ['']", "trustDomainAliases: \"\" is no"),
            ("caCertificates: [{pem: x}]", "caCertificates[0].pem: it holds no usable"),
            ("caCertificates: [{}]", "caCertificates[0]: neither"),
            ("[]", "not a mapping but []"),
        ] {
            let error = trust(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
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
