//! The certificate authority: signs keys for SPIFFE identities with the cluster's intermediate. It does not
//! know which caller may have which identity.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};

use playground_k8s::tls;

/// Certificates begin this long ago, for clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(120);

/// An intermediate with its key, under a root.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The intermediate, PEM.
    intermediate: String,
    /// The root bundle, PEM.
    roots: String,
    max_life: Duration,
}

/// Why nothing is signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The authority's own files cannot be used.
    #[error("{what}: {reason}")]
    Setup {
        /// The file.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The request is not a certificate request that is signed by its own key.
    #[error("csr: {0}")]
    Request(String),
    /// The request names another identity.
    #[error("csr: its subject alternative name is {0:?}, but {1:?} is asked for")]
    OtherName(String, String),
    /// The lifetime is no positive number of seconds.
    #[error("validity_duration: {0} is no lifetime")]
    Lifetime(i64),
    /// Signing failed.
    #[error("signing: {0}")]
    Sign(#[from] rcgen::Error),
}

// === impl Authority ===

impl Authority {
    /// Reads the intermediate, its key and the roots.
    ///
    /// # Errors
    /// With the file that cannot be read or used.
    pub(crate) fn read(cert: &Path, key: &Path, roots: &Path, max_life: Duration) -> Result<Self, Error> {
        let setup = |path: &Path, reason: String| Error::Setup { what: path.display().to_string(), reason };
        let text = |path: &Path| tls::read(path).map_err(|error| setup(path, error.to_string()));
        let (intermediate, roots_pem) = (text(cert)?, text(roots)?);
        tls::certificates(&roots.display().to_string(), &roots_pem)
            .map_err(|error| setup(roots, error.to_string()))?;
        let key_pair = KeyPair::from_pem(&text(key)?).map_err(|error| setup(key, error.to_string()))?;
        let issuer = Issuer::from_ca_cert_pem(&intermediate, key_pair)
            .map_err(|error| setup(cert, error.to_string()))?;
        Ok(Self { issuer, intermediate, roots: roots_pem, max_life })
    }

    /// The root bundle, PEM.
    pub(crate) fn roots(&self) -> &str {
        &self.roots
    }

    /// Signs the key of a request for one identity, whatever else the request asks for. Gives the chain: leaf,
    /// intermediate, and the roots as the last element.
    ///
    /// # Errors
    /// When the request or the lifetime is malformed, or the request names another identity.
    pub(crate) fn sign(
        &self,
        csr: &str,
        identity: &str,
        seconds: i64,
        now: SystemTime,
    ) -> Result<Vec<String>, Error> {
        let request = CertificateSigningRequestParams::from_pem(csr);
        let request = request.map_err(|error| Error::Request(error.to_string()))?;
        for name in &request.params.subject_alt_names {
            if !matches!(name, SanType::URI(uri) if uri.as_str() == identity) {
                return Err(Error::OtherName(shown(name), identity.to_owned()));
            }
        }
        let life = u64::try_from(seconds).ok().filter(|seconds| *seconds > 0);
        let life = Duration::from_secs(life.ok_or(Error::Lifetime(seconds))?).min(self.max_life);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity)?)];
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + life).into();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial());
        let leaf = params.signed_by(&request.public_key, &self.issuer)?;
        Ok(vec![leaf.pem(), self.intermediate.clone(), self.roots.clone()])
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// A positive random number of 127 bits.
fn serial() -> SerialNumber {
    let mut bytes = fastrand::u128(..).to_be_bytes();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn shown(name: &SanType) -> String {
    match name {
        SanType::URI(text) | SanType::DnsName(text) | SanType::Rfc822Name(text) => text.as_str().to_owned(),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests;
