//! Verification of peers by SPIFFE identity, in both directions, instead of by name.
//!
//! Paths, key usages and signatures are checked by webpki; what is added here is which identities are good enough, and
//! errors that say which were expected and which were shown.

use std::fmt;
use std::sync::Arc;

use isthmus_model::{SpiffeId, TrustDomain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::EndEntityCert;

use crate::provider::mesh_provider;

/// Why a certificate with a good path was still refused.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Client side: none of the server's identities is an expected one.
    #[error("peer presented {}, expected {}", list(presented), list(expected))]
    UnexpectedIdentity {
        /// What would have been accepted.
        expected: Vec<SpiffeId>,
        /// Every URI of the peer's leaf.
        presented: Vec<String>,
    },
    /// Server side: the client's identity is not of our trust domain.
    #[error("peer presented {}, expected an identity of trust domain {expected}", list(presented))]
    ForeignTrustDomain {
        /// Our trust domain.
        expected: TrustDomain,
        /// Every URI of the peer's leaf.
        presented: Vec<String>,
    },
}

/// The refusal inside a TLS error, if that is what it is.
#[must_use]
pub fn rejection(error: &rustls::Error) -> Option<&VerifyError> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => inner.downcast_ref(),
        _ => None,
    }
}

/// Accepts servers that prove one of the expected identities.
pub(crate) struct ServerIdentity {
    roots: Arc<RootCertStore>,
    expected: Vec<SpiffeId>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Accepts clients that prove an identity of our trust domain.
pub(crate) struct ClientIdentity {
    path: Arc<dyn ClientCertVerifier>,
    trust_domain: TrustDomain,
}

/// Every URI of a leaf, whatever its form.
pub(crate) fn uris(leaf: &CertificateDer<'_>) -> Result<Vec<String>, webpki::Error> {
    Ok(EndEntityCert::try_from(leaf)?.valid_uri_names().map(str::to_owned).collect())
}

/// Every URI of a leaf that is an identity in the mesh's form.
pub(crate) fn spiffe_ids(leaf: &CertificateDer<'_>) -> Result<Vec<SpiffeId>, webpki::Error> {
    Ok(EndEntityCert::try_from(leaf)?.valid_uri_names().filter_map(|uri| uri.parse().ok()).collect())
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    match items {
        [] => "no identity".to_owned(),
        [one] => one.to_string(),
        many => format!("one of [{}]", many.iter().map(T::to_string).collect::<Vec<_>>().join(", ")),
    }
}

fn refuse(error: VerifyError) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

fn unreadable(_: webpki::Error) -> rustls::Error {
    CertificateError::BadEncoding.into()
}

// === impl VerifyError ===

impl fmt::Debug for VerifyError {
    /// The same as `Display`: rustls prints the errors of verifiers with `Debug`, and its text is what is logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl ServerIdentity ===

impl ServerIdentity {
    pub(crate) fn new(roots: Arc<RootCertStore>, expected: &[SpiffeId]) -> Self {
        let algorithms = mesh_provider().signature_verification_algorithms;
        Self { roots, expected: expected.to_vec(), algorithms }
    }
}

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerIdentity").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for ServerIdentity {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let leaf = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &leaf,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        let shown = spiffe_ids(end_entity).map_err(unreadable)?;
        if shown.iter().any(|id| self.expected.contains(id)) {
            return Ok(ServerCertVerified::assertion());
        }
        let presented = uris(end_entity).map_err(unreadable)?;
        Err(refuse(VerifyError::UnexpectedIdentity { expected: self.expected.clone(), presented }))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

// === impl ClientIdentity ===

impl ClientIdentity {
    pub(crate) fn new(
        roots: Arc<RootCertStore>,
        trust_domain: TrustDomain,
    ) -> Result<Self, VerifierBuilderError> {
        let path = WebPkiClientVerifier::builder_with_provider(roots, mesh_provider())
            .clear_root_hint_subjects()
            .build()?;
        Ok(Self { path, trust_domain })
    }
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIdentity").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for ClientIdentity {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.path.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.path.verify_client_cert(end_entity, intermediates, now)?;
        // The first is the one that policies will see, so it is the one to look at: a second identity of ours must not
        // let a first one of another domain in.
        let shown = spiffe_ids(end_entity).map_err(unreadable)?;
        if shown.first().is_some_and(|id| id.trust_domain == self.trust_domain) {
            return Ok(verified);
        }
        let presented = uris(end_entity).map_err(unreadable)?;
        Err(refuse(VerifyError::ForeignTrustDomain { expected: self.trust_domain.clone(), presented }))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.path.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.path.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.path.supported_verify_schemes()
    }
}
