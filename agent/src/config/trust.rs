//! What peers' certificates are verified against: `CRL_PATH`, `COMPLIANCE_POLICY`, `TRUST_DOMAIN_ALIASES`, and the mesh config file
//! (`MESH_CONFIG`), which is followed while the process runs.

use std::path::{Path, PathBuf};

use isthmus_identity::KeyExchange;
use isthmus_model::{TrustDomain, TrustDomains};

use super::mesh::{self, MeshTrust};
use super::source::Reader;

/// Path at which charts mount the mesh config.
pub(super) const MESH_CONFIG: &str = "./etc/istio/config/mesh";

/// What peers' certificates are verified against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustConfig {
    /// File of certificate revocation lists (`CRL_PATH`); `None`: revocation is not checked.
    pub crl: Option<PathBuf>,
    /// TLS key exchange (`COMPLIANCE_POLICY`).
    pub key_exchange: KeyExchange,
    /// The mesh config file.
    pub mesh_config: PathBuf,
    /// `TRUST_DOMAIN`, when it is set.
    pub trust_domain: Option<TrustDomain>,
    /// Aliases from the environment, beside those of the mesh config file.
    pub aliases: Vec<TrustDomain>,
}

impl TrustConfig {
    /// The mesh's trust domain and its aliases: those of the file, and those that the environment adds.
    #[must_use]
    pub fn domains(&self, file: &MeshTrust) -> TrustDomains {
        let mesh = file.domain.clone().or_else(|| self.trust_domain.clone());
        TrustDomains::new(mesh, self.aliases.iter().chain(&file.aliases).cloned())
    }
}

/// The mesh config file (`MESH_CONFIG`).
pub(super) fn mesh_config(r: &Reader<'_>) -> PathBuf {
    r.text("MESH_CONFIG").unwrap_or_else(|| MESH_CONFIG.to_owned()).into()
}

/// Reads the settings. A mesh config file that exists must be valid.
pub(super) fn read(r: &mut Reader<'_>, warnings: &mut Vec<String>) -> TrustConfig {
    let key_exchange = match r.text("COMPLIANCE_POLICY").as_deref() {
        None => KeyExchange::Preferred,
        Some("pqc") => KeyExchange::PostQuantum,
        Some(other) => {
            r.fail(format!(
                "COMPLIANCE_POLICY={other:?} is not supported: the only policy is pqc (or unset)"
            ));
            KeyExchange::Preferred
        }
    };
    let mesh_config = mesh_config(r);
    check_mesh_config(r, &mesh_config, warnings);
    TrustConfig {
        crl: r.text("CRL_PATH").map(PathBuf::from),
        key_exchange,
        mesh_config,
        trust_domain: read_trust_domain(r),
        aliases: read_aliases(r),
    }
}

fn check_mesh_config(r: &mut Reader<'_>, path: &Path, warnings: &mut Vec<String>) {
    match std::fs::read_to_string(path) {
        Ok(text) => match mesh::trust(&text) {
            Ok(found) => warnings
                .extend(found.ignored.iter().map(|what| format!("{}: {what} is ignored", path.display()))),
            Err(error) => r.fail(format!("{}: {error}", path.display())),
        },
        // The default path is optional. A named file may appear later, so its absence only warns.
        Err(error) if r.text("MESH_CONFIG").is_some() => {
            warnings.push(format!(
                "MESH_CONFIG={}: {error}; the file is followed and applied once it can be read",
                path.display()
            ));
        }
        Err(_) => {}
    }
}

/// `TRUST_DOMAIN`.
fn read_trust_domain(r: &mut Reader<'_>) -> Option<TrustDomain> {
    let domain = mesh::trust_domain(&r.text("TRUST_DOMAIN")?);
    domain.map_err(|error| r.fail(format!("TRUST_DOMAIN: {error}"))).ok()
}

/// `TRUST_DOMAIN_ALIASES`: names, separated by commas.
fn read_aliases(r: &mut Reader<'_>) -> Vec<TrustDomain> {
    let text = r.text("TRUST_DOMAIN_ALIASES").unwrap_or_default();
    let mut aliases = Vec::new();
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match mesh::trust_domain(name) {
            Ok(name) => aliases.push(name),
            Err(error) => r.fail(format!("TRUST_DOMAIN_ALIASES: {error}")),
        }
    }
    aliases
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::agent;

    fn read(pairs: &[(&str, &str)]) -> Result<agent::AgentConfig, Vec<String>> {
        let mut env: BTreeMap<_, _> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        env.insert("XDS_ADDRESS".to_owned(), "istiod:15012".to_owned());
        agent::read(&env).map_err(|errors| errors.0)
    }

    #[test]
    fn defaults_verify_spiffe_identities_only() {
        let trust = read(&[]).unwrap().trust;
        let expected = TrustConfig {
            crl: None,
            key_exchange: KeyExchange::Preferred,
            mesh_config: MESH_CONFIG.into(),
            trust_domain: None,
            aliases: Vec::new(),
        };
        assert_eq!(trust, expected);
        assert_eq!(trust.domains(&MeshTrust::default()), TrustDomains::default());
    }

    #[test]
    fn aliases_of_file_and_environment_are_merged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mesh");
        std::fs::write(&path, "trustDomain: new\ntrustDomainAliases: [old]\n").unwrap();
        let config = read(&[
            ("CRL_PATH", "/crl.pem"),
            ("COMPLIANCE_POLICY", "pqc"),
            ("MESH_CONFIG", path.to_str().unwrap()),
            ("TRUST_DOMAIN", "from-env"),
            ("TRUST_DOMAIN_ALIASES", "older, oldest,"),
        ])
        .unwrap();
        let trust = config.trust;
        assert_eq!(trust.crl.as_deref(), Some(Path::new("/crl.pem")));
        assert_eq!(trust.key_exchange, KeyExchange::PostQuantum);
        let file = mesh::trust(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let aliases = ["old", "older", "oldest"].map(TrustDomain::from);
        assert_eq!(trust.domains(&file), TrustDomains::new(Some("new".into()), aliases));
        let without = trust.domains(&MeshTrust::default());
        assert_eq!(without.mesh(), Some(&TrustDomain::from("from-env")));
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    }

    #[test]
    fn invalid_values_are_errors_and_a_missing_mesh_config_only_warns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mesh");
        let name = path.to_str().unwrap();
        let warnings = read(&[("MESH_CONFIG", name)]).unwrap().warnings;
        assert!(warnings.iter().any(|line| line.contains(name)), "{warnings:?}");
        std::fs::write(&path, "trustDomainAliases: 7").unwrap();
        let errors = read(&[
            ("MESH_CONFIG", name),
            ("COMPLIANCE_POLICY", "fips-140-2"),
            ("TRUST_DOMAIN_ALIASES", "good,spiffe://bad"),
        ])
        .unwrap_err();
        for what in ["trustDomainAliases", "\"fips-140-2\"", "\"spiffe://bad\""] {
            assert!(errors.iter().any(|line| line.contains(what)), "{what}: {errors:?}");
        }
    }
}
