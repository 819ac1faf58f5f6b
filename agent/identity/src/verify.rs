//! Verification of TLS peers by SPIFFE identity instead of by host name, in both directions.
//!
//! webpki checks paths, key usages, revocations and signatures (`path`). Added here: which roots are authorized
//! for an identity, which identities are acceptable, and errors that name what was expected and what was presented. A
//! verifier belongs to one handshake and records its result in a `PeerProof`.

mod error;

use std::fmt;
use std::sync::Arc;

use isthmus_model::{SpiffeId, TrustDomain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

pub use self::error::{VerifyError, is_revocation, rejection};
use self::error::{from_webpki, into_rustls};
use crate::crl::Revocations;
use crate::path::{self, PeerRole, spiffe_ids, uris};
use crate::peer::PeerProof;
use crate::trust::{Rules, Trust};

/// What both directions have in common: path building under the current trust rules, and handshake signatures.
pub(crate) struct PeerVerifier {
    own: TrustDomain,
    roots: Arc<RootCertStore>,
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
    proof: Arc<PeerProof>,
}

/// Accepts servers that prove one of the expected identities.
pub(crate) struct ServerVerifier {
    peer: PeerVerifier,
    expected: Vec<SpiffeId>,
}

/// Accepts clients that prove an identity of our trust domain or of one of its aliases.
pub(crate) struct ClientVerifier {
    peer: PeerVerifier,
}

// === impl PeerVerifier ===

impl PeerVerifier {
    /// A verifier for one handshake of a workload in trust domain `own` whose certificate came with `roots`.
    pub(crate) fn new(
        own: &TrustDomain,
        roots: Arc<RootCertStore>,
        trust: &Trust,
        proof: Arc<PeerProof>,
    ) -> Self {
        let algorithms = trust.key_exchange().provider().signature_verification_algorithms;
        Self { own: own.clone(), roots, trust: trust.clone(), algorithms, proof }
    }

    /// Accepts servers only, and only those with one of `expected`.
    pub(crate) fn for_servers(self, expected: &[SpiffeId]) -> ServerVerifier {
        ServerVerifier { peer: self, expected: expected.to_vec() }
    }

    /// Accepts clients only.
    pub(crate) fn for_clients(self) -> ClientVerifier {
        ClientVerifier { peer: self }
    }

    /// The identities in a leaf whose chain leads to a root that is authorized for all of them.
    fn identities(
        &self,
        rules: &Rules,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        role: PeerRole,
    ) -> Result<Vec<SpiffeId>, rustls::Error> {
        if let Revocations::Unknown(reason) = &*rules.revocations {
            return Err(into_rustls(VerifyError::NoRevocationList(reason.clone())));
        }
        let presented = spiffe_ids(leaf).map_err(from_webpki)?;
        let verify =
            |anchors: &[_]| path::verify(leaf, intermediates, anchors, now, role, &rules.revocations);
        match verify(&rules.anchors(&self.own, &self.roots, &presented, now)) {
            Ok(()) => Ok(presented),
            // A known root that is not authorized here is a configuration problem and deserves a better error than an
            // unknown one.
            Err(webpki::Error::UnknownIssuer) if verify(&rules.all_anchors(&self.roots)).is_ok() => {
                Err(into_rustls(VerifyError::UnboundRoot { presented: uris(leaf).map_err(from_webpki)? }))
            }
            Err(error) => Err(from_webpki(error)),
        }
    }

    fn verify_tls12(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let valid = rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)?;
        self.proof.key_proven(cert);
        Ok(valid)
    }

    fn verify_tls13(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let valid = rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)?;
        self.proof.key_proven(cert);
        Ok(valid)
    }
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerVerifier").field("trust_domain", &self.own).finish_non_exhaustive()
    }
}

// === impl ServerVerifier ===

impl ServerVerifier {
    /// Accepts a chain as of a time.
    pub(crate) fn accept(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        at: UnixTime,
    ) -> Result<(), rustls::Error> {
        let peer = &self.peer;
        let rules = peer.trust.rules();
        let presented = peer.identities(&rules, leaf, intermediates, at, PeerRole::Server)?;
        let is_expected = |id: &SpiffeId| {
            self.expected.iter().any(|expected| rules.domains.same_identity(&peer.own, id, expected))
        };
        if presented.iter().any(is_expected) {
            peer.proof.chain_accepted(leaf, presented);
            return Ok(());
        }
        let presented = uris(leaf).map_err(from_webpki)?;
        Err(into_rustls(VerifyError::UnexpectedIdentity { expected: self.expected.clone(), presented }))
    }
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerVerifier").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.accept(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.peer.verify_tls12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.peer.verify_tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.peer.algorithms.supported_schemes()
    }
}

// === impl ClientVerifier ===

impl ClientVerifier {
    /// Accepts a chain as of a time.
    pub(crate) fn accept(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        at: UnixTime,
    ) -> Result<(), rustls::Error> {
        let peer = &self.peer;
        let rules = peer.trust.rules();
        let presented = peer.identities(&rules, leaf, intermediates, at, PeerRole::Client)?;
        // Policies see the first identity, so that is the one to check: a second identity of our domain must not admit
        // a first one of another domain.
        if presented.first().is_some_and(|id| rules.domains.same(&peer.own, &id.trust_domain)) {
            peer.proof.chain_accepted(leaf, presented);
            return Ok(());
        }
        let presented = uris(leaf).map_err(from_webpki)?;
        Err(into_rustls(VerifyError::ForeignTrustDomain { expected: peer.own.clone(), presented }))
    }
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientVerifier").field("trust_domain", &self.peer.own).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for ClientVerifier {
    /// No hints: the roots of the mesh may change while a handshake runs, and clients have one certificate anyway.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.accept(end_entity, intermediates, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.peer.verify_tls12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.peer.verify_tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.peer.algorithms.supported_schemes()
    }
}
