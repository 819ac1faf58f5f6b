//! Keys and certificate signing requests (PKCS #10): ECDSA P-256, empty subject, the identity as one critical URI SAN.

use isthmus_model::SpiffeId;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A new key and the signing request for it.
#[derive(Debug)]
pub struct Csr {
    /// The private key, PKCS#8.
    pub key: PrivateKeyDer<'static>,
    /// The request, PEM.
    pub pem: String,
}

/// Why no request could be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no certificate request could be made for {identity}: {source}")]
pub struct CsrError {
    identity: SpiffeId,
    source: rcgen::Error,
}

/// Generates a key and a request for `identity`.
///
/// # Errors
/// When the identity cannot be written as an ASCII URI, or the random number generator fails.
pub fn generate(identity: &SpiffeId) -> Result<Csr, CsrError> {
    let request = || {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        // With an empty subject the alternative name must be critical (RFC 5280 §4.2.1.6); rcgen then makes it so.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        let pem = params.serialize_request(&key)?.pem()?;
        Ok(Csr { key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(), pem })
    };
    request().map_err(|source| CsrError { identity: identity.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::pem::parse_x509_pem;
    use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509CertificationRequest};

    #[test]
    fn request_has_an_empty_subject_and_one_critical_uri() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        let csr = generate(&id).unwrap();
        assert!(matches!(csr.key, PrivateKeyDer::Pkcs8(_)));
        let (_, pem) = parse_x509_pem(csr.pem.as_bytes()).unwrap();
        assert_eq!(pem.label, "CERTIFICATE REQUEST");
        let (_, request) = X509CertificationRequest::from_der(&pem.contents).unwrap();
        request.verify_signature().unwrap();
        assert_eq!(request.certification_request_info.subject.as_raw(), [0x30, 0x00]);
        // ecdsa-with-SHA256 over prime256v1.
        assert_eq!(request.signature_algorithm.algorithm.to_id_string(), "1.2.840.10045.4.3.2");
        let curve = request.certification_request_info.subject_pki.algorithm.parameters.clone().unwrap();
        assert_eq!(curve.as_oid().unwrap().to_id_string(), "1.2.840.10045.3.1.7");
        let extensions: Vec<_> = request
            .certification_request_info
            .iter_attributes()
            .filter_map(|attribute| match attribute.parsed_attribute() {
                x509_parser::cri_attributes::ParsedCriAttribute::ExtensionRequest(requested) => {
                    Some(&requested.extensions)
                }
                _ => None,
            })
            .flatten()
            .collect();
        assert_eq!(extensions.len(), 1);
        assert!(extensions[0].critical);
        let ParsedExtension::SubjectAlternativeName(san) = extensions[0].parsed_extension() else {
            panic!("not a subject alternative name");
        };
        assert_eq!(san.general_names, [GeneralName::URI(&id.to_string())]);
    }

    #[test]
    fn each_request_has_its_own_key() {
        let id: SpiffeId = "spiffe://td/ns/n/sa/a".parse().unwrap();
        assert_ne!(generate(&id).unwrap().key.secret_der(), generate(&id).unwrap().key.secret_der());
    }

    #[test]
    fn error_for_a_non_ascii_identity_names_it() {
        let id: SpiffeId = SpiffeId::new("td".into(), "ñ".into(), "a".into());
        assert!(generate(&id).unwrap_err().to_string().contains("spiffe://td/ns/ñ/sa/a"));
    }
}
