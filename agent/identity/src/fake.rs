//! A local signer whose root's private key is **public**, for demos and tests without a CA.
//!
//! The root is fixed so that two processes trust each other. Traffic is encrypted but peers are not authenticated: anyone
//! can sign with this root. The composition root decides when it may be used, and warns.

use std::sync::OnceLock;
use std::time::Duration;

use isthmus_model::SpiffeId;
use isthmus_rt::BoxFuture;
use rcgen::{
    CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::clock::{Clock, system_clock};
use crate::source::{SignError, Signer};

const ROOT_CERT: &str = include_str!("fake/public-test-root.pem");
const ROOT_KEY: &str = include_str!("fake/public-test-root-key.pem");

/// How far back validity starts, for peers whose clock is slow.
const BACKDATE: Duration = Duration::from_secs(10);

/// PEM of the public test root.
#[must_use]
pub fn test_root_pem() -> &'static str {
    ROOT_CERT
}

/// Signs from the public test root.
pub struct FakeSigner {
    clock: Clock,
}

impl FakeSigner {
    /// A signer that uses the system's clock.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(system_clock())
    }

    /// A signer that uses `clock`.
    #[must_use]
    pub fn with_clock(clock: Clock) -> Self {
        Self { clock }
    }

    fn issue(&self, id: &SpiffeId, csr_pem: &str, ttl: Duration) -> Result<Vec<String>, rcgen::Error> {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem)?;
        let now = (self.clock)();
        let params = &mut request.params;
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + ttl).into();
        Ok(vec![request.signed_by(root()?)?.pem(), ROOT_CERT.to_owned()])
    }
}

impl Default for FakeSigner {
    fn default() -> Self {
        Self::new()
    }
}

impl Signer for FakeSigner {
    fn sign(
        &self,
        id: &SpiffeId,
        csr_pem: String,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<Vec<String>, SignError>> {
        let failed = |error: rcgen::Error| SignError::LocalSigner { reason: error.to_string() };
        let chain = self.issue(id, &csr_pem, ttl).map_err(failed);
        Box::pin(std::future::ready(chain))
    }
}

fn root() -> Result<&'static Issuer<'static, KeyPair>, rcgen::Error> {
    static ROOT: OnceLock<Result<Issuer<'static, KeyPair>, rcgen::Error>> = OnceLock::new();
    let load = || Issuer::from_ca_cert_pem(ROOT_CERT, KeyPair::from_pem(ROOT_KEY)?);
    ROOT.get_or_init(load).as_ref().map_err(Clone::clone)
}
