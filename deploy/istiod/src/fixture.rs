//! Keys and certificates for tests: a root, an intermediate under it, and requests.

use std::path::Path;

use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};

/// Writes `root.pem`, `ca.pem`, `ca-key.pem`, and a serving certificate `cert.pem` with `key.pem`.
pub(crate) fn write_pki(dir: &Path) {
    let ca = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    };
    let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let root = ca("root").self_signed(&root_key).unwrap();
    let root_issuer = Issuer::new(ca("root"), root_key);
    let intermediate = ca("east").signed_by(&key, &root_issuer).unwrap();
    let serving_key = KeyPair::generate().unwrap();
    let serving = CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    let serving = serving.signed_by(&serving_key, &root_issuer).unwrap();
    for (name, text) in [
        ("root.pem", root.pem()),
        ("ca.pem", intermediate.pem()),
        ("ca-key.pem", key.serialize_pem()),
        ("cert.pem", serving.pem()),
        ("key.pem", serving_key.serialize_pem()),
    ] {
        std::fs::write(dir.join(name), text).unwrap();
    }
}

/// A certificate request with an identity in it, or with none.
pub(crate) fn csr(identity: Option<&str>) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names =
        identity.map(|identity| SanType::URI(Ia5String::try_from(identity).unwrap())).into_iter().collect();
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}
