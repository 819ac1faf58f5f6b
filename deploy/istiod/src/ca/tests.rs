//! What is signed, and for how long.

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls_pki_types::{ServerName, UnixTime};

use super::*;
use crate::fixture::{csr, write_pki};

const IDENTITY: &str = "spiffe://cluster.local/ns/sample/sa/sleep";

fn authority() -> Authority {
    let dir = tempfile::tempdir().unwrap();
    write_pki(dir.path());
    let path = |name: &str| dir.path().join(name);
    Authority::read(&path("ca.pem"), &path("ca-key.pem"), &path("root.pem"), Duration::from_secs(3600))
        .unwrap()
}

/// Whether the chain leads to its root at a time. The name cannot fit, so the verifier gets as far as that.
fn verify(chain: &[String], at: SystemTime) -> Result<(), rustls::Error> {
    let certificate = |pem: &String| tls::certificates("chain", pem).unwrap().remove(0);
    let mut roots = RootCertStore::empty();
    roots.add(certificate(&chain[2])).unwrap();
    let verifier =
        WebPkiServerVerifier::builder_with_provider(roots.into(), tls::provider()).build().unwrap();
    let now = UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap());
    let name = ServerName::try_from("nobody.example").unwrap();
    match verifier.verify_server_cert(&certificate(&chain[0]), &[certificate(&chain[1])], &name, &[], now) {
        Err(rustls::Error::InvalidCertificate(rustls::CertificateError::NotValidForNameContext {
            presented,
            ..
        })) => {
            assert!(presented.iter().any(|name| name.contains(IDENTITY)), "{presented:?}");
            Ok(())
        }
        outcome => outcome.map(|_| ()),
    }
}

#[test]
fn the_chain_leads_to_the_root_and_lasts_as_asked() {
    let (authority, now) = (authority(), SystemTime::now());
    let chain = authority.sign(&csr(Some(IDENTITY)), IDENTITY, 600, now).unwrap();
    assert_eq!(chain.len(), 3);
    let after = |seconds| now + Duration::from_secs(seconds);
    verify(&chain, after(0)).unwrap();
    verify(&chain, after(590)).unwrap();
    assert!(verify(&chain, after(700)).is_err());
    let capped = authority.sign(&csr(None), IDENTITY, 1 << 40, now).unwrap();
    verify(&capped, after(3590)).unwrap();
    assert!(verify(&capped, after(3700)).is_err());
    assert_ne!(chain[0], capped[0]);
}

#[test]
fn what_cannot_be_signed_is_named() {
    let authority = authority();
    let says = |csr: &str, seconds: i64| {
        authority.sign(csr, IDENTITY, seconds, SystemTime::now()).unwrap_err().to_string()
    };
    assert!(says("-----BEGIN", 600).starts_with("csr: "));
    let other = csr(Some("spiffe://cluster.local/ns/sample/sa/admin"));
    assert!(says(&other, 600).contains("sa/admin\", but"));
    for seconds in [0, -1] {
        assert!(says(&csr(None), seconds).contains(&format!("validity_duration: {seconds}")));
    }
    let missing = Path::new("/nonexistent/ca.pem");
    let error = Authority::read(missing, missing, missing, Duration::ZERO).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/ca.pem"));
}
