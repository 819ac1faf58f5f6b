//! The mesh configuration as YAML: `ProxyConfig` (`PROXY_CONFIG`, or `defaultConfig` of the mesh config file) and the
//! file's trust settings. Unknown keys only warn: newer control planes add some.

use std::collections::BTreeMap;

use isthmus_identity::trust::{BoundRoot, NoRoot};
use isthmus_model::TrustDomain;
use yaml_serde::Value;

use super::source::Reader;

/// The part of a `ProxyConfig` that the agent uses.
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
    /// Node metadata, and settings that the environment does not have.
    pub metadata: BTreeMap<String, String>,
    /// Unknown keys, for the log.
    pub unknown: Vec<String>,
}

/// Why a mesh config or a `ProxyConfig` cannot be used. Names the key and its value.
#[derive(Debug, thiserror::Error)]
pub enum MeshConfigError {
    /// The text is not YAML.
    #[error("not valid YAML: {0}")]
    Yaml(#[from] yaml_serde::Error),
    /// The document is not a mapping.
    #[error("not a mapping but {0}")]
    NotAMapping(String),
    /// A key is not a string.
    #[error("key {0} is not a string")]
    Key(String),
    /// A value has another type than its key requires.
    #[error("{key}: {value} is not {expected}")]
    Value {
        /// Path of the key.
        key: String,
        /// The value, in one line.
        value: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// A value is not a trust domain.
    #[error("{key}: {source}")]
    TrustDomain {
        /// Path of the key.
        key: String,
        /// Why.
        source: InvalidTrustDomain,
    },
    /// An entry of `caCertificates` holds no usable root.
    #[error("{key}: {source}")]
    Roots {
        /// Path of the key.
        key: String,
        /// Why.
        source: NoRoot,
    },
    /// An entry of `caCertificates` holds nothing.
    #[error("{0}: neither pem nor spiffeBundleUrl is given")]
    NoCertificate(String),
}

/// A text that is not a trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a trust domain (lower-case letters, digits, '.', '-' and '_')")]
pub struct InvalidTrustDomain(String);

impl ProxyConfig {
    /// This configuration over `base`, the mesh's default: what it does not set, and metadata that it does not name, is
    /// the base's.
    #[must_use]
    pub fn over(self, base: Self) -> Self {
        let mut metadata = base.metadata;
        metadata.extend(self.metadata);
        Self {
            discovery_address: self.discovery_address.or(base.discovery_address),
            admin_port: self.admin_port.or(base.admin_port),
            stats_port: self.stats_port.or(base.stats_port),
            concurrency: self.concurrency.or(base.concurrency),
            metadata,
            unknown: self.unknown,
        }
    }

    /// A setting that may be given to one agent by its environment, or to all proxies by `proxyMetadata`; the environment
    /// wins.
    #[must_use]
    pub fn setting(&self, r: &Reader<'_>, key: &str) -> Option<String> {
        let given = || self.metadata.get(key).or_else(|| self.metadata.get(&meta_key(key))).cloned();
        r.text(key).or_else(given)
    }
}

/// The metadata key of an `ISTIO_META_…` variable.
pub(super) fn meta_key(key: &str) -> String {
    key.strip_prefix("ISTIO_META_").unwrap_or(key).to_owned()
}

/// Reads a `ProxyConfig` document.
///
/// # Errors
/// When it is not a mapping, or a known key has a value that it cannot have.
pub fn proxy_config(text: &str) -> Result<ProxyConfig, MeshConfigError> {
    let document: Value = yaml_serde::from_str(text)?;
    let mut config = ProxyConfig::default();
    let map = match document {
        Value::Null => return Ok(config),
        Value::Mapping(map) => map,
        other => return Err(MeshConfigError::NotAMapping(shown(&other))),
    };
    for (key, value) in map {
        let key = key.as_str().map(str::to_owned).ok_or_else(|| MeshConfigError::Key(shown(&key)))?;
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
pub fn mesh_default_config(text: &str) -> Result<ProxyConfig, MeshConfigError> {
    let document: Value = yaml_serde::from_str(text)?;
    match document.get("defaultConfig") {
        None => Ok(ProxyConfig::default()),
        Some(inner) => proxy_config(&yaml_serde::to_string(inner)?),
    }
}

/// Reads `rootNamespace` out of a mesh config file. A broken file is reported by [`mesh_default_config`].
pub fn root_namespace(text: &str) -> Option<String> {
    let document: Value = yaml_serde::from_str(text).ok()?;
    document.get("rootNamespace")?.as_str().filter(|name| !name.is_empty()).map(str::to_owned)
}

/// The trust settings of a mesh config file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MeshTrust {
    /// The mesh's trust domain.
    pub domain: Option<TrustDomain>,
    /// Its aliases.
    pub aliases: Vec<TrustDomain>,
    /// Additional roots (`caCertificates`), each with the trust domains that it may sign for.
    pub roots: Vec<BoundRoot>,
    /// Known settings that are not supported, for the log.
    pub ignored: Vec<String>,
}

/// Reads `trustDomain`, `trustDomainAliases` and `caCertificates` out of a mesh config file.
///
/// # Errors
/// When it is not a mapping, or one of these keys has a value that it cannot have.
pub fn trust(text: &str) -> Result<MeshTrust, MeshConfigError> {
    let document: Value = yaml_serde::from_str(text)?;
    if !matches!(document, Value::Null | Value::Mapping(_)) {
        return Err(MeshConfigError::NotAMapping(shown(&document)));
    }
    let mut found = MeshTrust::default();
    if let Some(value) = document.get("trustDomain") {
        found.domain = Some(domain("trustDomain", value)?);
    }
    found.aliases = domains(&document, "trustDomainAliases", "trustDomainAliases")?;
    for (at, entry) in list(&document, "caCertificates", "caCertificates")?.iter().enumerate() {
        let key = format!("caCertificates[{at}]");
        match (entry.get("pem"), entry.get("spiffeBundleUrl")) {
            (Some(pem), _) => {
                let domains = domains(entry, "trustDomains", &format!("{key}.trustDomains"))?;
                let pem = string(&format!("{key}.pem"), pem)?;
                let roots = BoundRoot::from_pem(&pem, &domains);
                let roots =
                    roots.map_err(|source| MeshConfigError::Roots { key: format!("{key}.pem"), source });
                found.roots.extend(roots?);
            }
            (None, Some(_)) => found
                .ignored
                .push(format!("{key}.spiffeBundleUrl: SPIFFE bundles are not fetched, the entry")),
            (None, None) => return Err(MeshConfigError::NoCertificate(key)),
        }
    }
    Ok(found)
}

/// A trust domain by its name.
///
/// # Errors
/// When it is empty or has characters that no trust domain has.
pub fn trust_domain(name: &str) -> Result<TrustDomain, InvalidTrustDomain> {
    if TrustDomain::is_valid(name) { Ok(name.into()) } else { Err(InvalidTrustDomain(name.to_owned())) }
}

fn domain(path: &str, value: &Value) -> Result<TrustDomain, MeshConfigError> {
    let invalid = |source| MeshConfigError::TrustDomain { key: path.to_owned(), source };
    trust_domain(&string(path, value)?).map_err(invalid)
}

fn domains(parent: &Value, key: &str, path: &str) -> Result<Vec<TrustDomain>, MeshConfigError> {
    list(parent, key, path)?.iter().map(|value| domain(path, value)).collect()
}

/// The value of `key` is of another type.
fn unexpected(key: &str, value: &Value, expected: &'static str) -> MeshConfigError {
    MeshConfigError::Value { key: key.to_owned(), value: shown(value), expected }
}

fn list<'a>(parent: &'a Value, key: &str, path: &str) -> Result<&'a [Value], MeshConfigError> {
    match parent.get(key) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Sequence(values)) => Ok(values),
        Some(other) => Err(unexpected(path, other, "a list")),
    }
}

fn string(key: &str, value: &Value) -> Result<String, MeshConfigError> {
    value.as_str().map(str::to_owned).ok_or_else(|| unexpected(key, value, "a string"))
}

fn number(key: &str, value: &Value) -> Result<u16, MeshConfigError> {
    let fits = value.as_u64().and_then(|number| u16::try_from(number).ok());
    fits.ok_or_else(|| unexpected(key, value, "a number from 0 to 65535"))
}

fn strings(key: &str, value: &Value) -> Result<BTreeMap<String, String>, MeshConfigError> {
    let map = match value {
        Value::Null => return Ok(BTreeMap::new()),
        Value::Mapping(map) => map,
        other => return Err(unexpected(key, other, "a mapping")),
    };
    let pair = |(name, value): (&Value, &Value)| {
        let name = name.as_str().ok_or_else(|| unexpected(key, name, "a string key"))?;
        Ok((name.to_owned(), string(&format!("{key}.{name}"), value)?))
    };
    map.iter().map(pair).collect()
}

/// The value as YAML in one line.
fn shown(value: &Value) -> String {
    let text = yaml_serde::to_string(value).unwrap_or_else(|_| format!("{value:?}"));
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_keys_are_read_and_unknown_ones_reported() {
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
    fn each_root_is_bound_to_its_trust_domains() {
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
            ("trustDomain: Mesh", "trustDomain: \"Mesh\" is no"),
            ("trustDomain: a/b", "trustDomain: \"a/b\" is no"),
            ("trustDomainAliases: x", "trustDomainAliases: x is not a list"),
            ("trustDomainAliases: ['']", "trustDomainAliases: \"\" is no"),
            ("caCertificates: [{pem: x}]", "caCertificates[0].pem: it holds no usable"),
            ("caCertificates: [{}]", "caCertificates[0]: neither"),
            ("[]", "not a mapping but []"),
        ] {
            let error = trust(text).unwrap_err().to_string();
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
            assert!(proxy_config(text).unwrap_err().to_string().contains(named), "{text}");
        }
    }
}
