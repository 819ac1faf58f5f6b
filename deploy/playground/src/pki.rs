//! Keys and certificates of the world: one mesh root that both clusters share, an intermediate for each cluster's
//! istiod, and each API server's own authority. Written once, before anything starts.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use base64::Engine as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use std::io::Write as _;

use crate::dir::Dir;
use crate::plan::{Cluster, Plan};

/// Authorities outlive every world; servers outlive every session.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// Clocks of one machine agree, but a certificate must be valid in the second in which it is made.
const BACKDATED: Duration = Duration::from_secs(3600);
/// Names of an istiod's certificate.
const ISTIOD: [&str; 3] =
    ["istiod.istio-system.svc", "istiod.istio-system", "istiod.istio-system.svc.cluster.local"];

type Authority = CertifiedIssuer<'static, KeyPair>;

/// Files of one cluster.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    /// The mesh root that all clusters share.
    pub(crate) root: PathBuf,
    /// istiod's signing certificate and key.
    pub(crate) ca: (PathBuf, PathBuf),
    /// istiod's serving chain and key.
    pub(crate) istiod: (PathBuf, PathBuf),
    /// The API server's authority.
    pub(crate) api_ca: PathBuf,
    /// The API server's serving certificate and key.
    pub(crate) api: (PathBuf, PathBuf),
}

impl Files {
    /// Where a cluster's files are.
    pub(crate) fn of(dir: &Dir, cluster: &str) -> Self {
        let at = |name: &str| dir.pki(cluster).join(name);
        Self {
            root: at("root-cert.pem"),
            ca: (at("ca-cert.pem"), at("ca-key.pem")),
            istiod: (at("istiod-cert.pem"), at("istiod-key.pem")),
            api_ca: at("api-ca.pem"),
            api: (at("api-cert.pem"), at("api-key.pem")),
        }
    }
}

/// Makes everything, and the administrators' kubeconfigs.
pub(crate) fn write(dir: &Dir, plan: &Plan) -> anyhow::Result<()> {
    let root =
        CertifiedIssuer::self_signed(authority("Isthmus playground root", None), KeyPair::generate()?)?;
    for cluster in &plan.clusters {
        cluster_files(dir, cluster, &root).with_context(|| format!("keys of cluster {}", cluster.name))?;
    }
    Ok(())
}

fn cluster_files(dir: &Dir, cluster: &Cluster, root: &Authority) -> anyhow::Result<()> {
    let files = Files::of(dir, &cluster.name);
    fs::create_dir_all(dir.pki(&cluster.name))?;
    put(&files.root, &root.pem())?;
    let name = format!("istiod of {}", cluster.name);
    let intermediate = CertifiedIssuer::signed_by(authority(&name, Some(0)), KeyPair::generate()?, root)?;
    put(&files.ca.0, &intermediate.pem())?;
    put(&files.ca.1, &intermediate.key().serialize_pem())?;
    let (leaf, key) = server(ISTIOD.map(str::to_owned).to_vec(), &intermediate)?;
    put(&files.istiod.0, &format!("{leaf}{}", intermediate.pem()))?;
    put(&files.istiod.1, &key)?;

    let name = format!("kubernetes of {}", cluster.name);
    let api = CertifiedIssuer::self_signed(authority(&name, Some(0)), KeyPair::generate()?)?;
    put(&files.api_ca, &api.pem())?;
    let address = IpAddr::from(cluster.api).to_string();
    let (leaf, key) = server(vec![address, "kubernetes.default.svc".to_owned()], &api)?;
    put(&files.api.0, &leaf)?;
    put(&files.api.1, &key)?;
    kubeconfig(dir, cluster, &api.pem())
}

/// Administrator's access, in the form that every Kubernetes client reads.
fn kubeconfig(dir: &Dir, cluster: &Cluster, ca: &str) -> anyhow::Result<()> {
    let token = format!("{:032x}", fastrand::u128(..));
    let file = dir.kubeconfig(&cluster.name);
    fs::create_dir_all(file.parent().unwrap_or(&file))?;
    put(&dir.admin_token(&cluster.name), &token)?;
    let (name, server) = (&cluster.name, cluster.api_url());
    let ca = base64::engine::general_purpose::STANDARD.encode(ca);
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: {name}\n\
         clusters:\n- name: {name}\n  cluster:\n    server: {server}\n    certificate-authority-data: {ca}\n\
         users:\n- name: admin\n  user:\n    token: {token}\n\
         contexts:\n- name: {name}\n  context:\n    cluster: {name}\n    user: admin\n"
    );
    put(&file, &text)
}

fn authority(name: &str, path_len: Option<u8>) -> CertificateParams {
    let mut params = dated(name, YEAR * 10);
    params.is_ca = IsCa::Ca(path_len.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}

/// A serving certificate and its key as PEM.
fn server(names: Vec<String>, by: &Issuer<'_, KeyPair>) -> anyhow::Result<(String, String)> {
    let first = names.first().cloned().unwrap_or_default();
    let mut params = dated(&first, YEAR);
    params.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    Ok((params.signed_by(&key, by)?.pem(), key.serialize_pem()))
}

fn dated(name: &str, life: Duration) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + life).into();
    params
}

/// Only the owner may read: most of it is secret.
fn put(file: &Path, text: &str) -> anyhow::Result<()> {
    let mut options = fs::OpenOptions::new();
    options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(file)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls_pki_types::UnixTime;

    use super::*;
    use crate::plan::Topology;
    use playground_k8s::tls;

    fn verify(chain: &Path, roots: &Path, name: &str) -> Result<(), rustls::Error> {
        let chain = tls::certificates("chain", &fs::read_to_string(chain).unwrap()).unwrap();
        let mut store = rustls::RootCertStore::empty();
        for root in tls::certificates("roots", &fs::read_to_string(roots).unwrap()).unwrap() {
            store.add(root).unwrap();
        }
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(store), tls::provider()).build().unwrap();
        let name = name.to_owned().try_into().unwrap();
        verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now()).map(|_| ())
    }

    #[test]
    fn both_istiods_are_trusted_by_the_one_root_and_api_servers_by_their_own() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::at(temp.path().to_owned());
        let plan = Plan::new(Topology::MultiPrimary);
        write(&dir, &plan).unwrap();
        let (east, west) = (Files::of(&dir, "east"), Files::of(&dir, "west"));
        assert_eq!(fs::read(&east.root).unwrap(), fs::read(&west.root).unwrap());
        verify(&east.istiod.0, &west.root, "istiod.istio-system.svc").unwrap();
        verify(&west.istiod.0, &east.root, "istiod.istio-system.svc").unwrap();
        assert!(verify(&east.istiod.0, &east.root, "other.istio-system.svc").is_err());
        verify(&east.api.0, &east.api_ca, "192.168.97.2").unwrap();
        assert!(verify(&east.api.0, &west.api_ca, "192.168.97.2").is_err());
        let west = fs::read_to_string(dir.kubeconfig("west")).unwrap();
        assert!(west.contains("https://192.168.97.3:6443"), "{west}");
    }
}
