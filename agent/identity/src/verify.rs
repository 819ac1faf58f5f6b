//! Verification of peers by SPIFFE identity, in both directions, instead of by name.
//!
//! Paths, key usages, revocations and signatures are checked by webpki; what is added here is which roots may speak for
//! an identity, which identities are good enough, and errors that say which were expected and which were shown.

use std::fmt;
use std::sync::Arc;

use isthmus_model::{SpiffeId, TrustDomain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertRevocationListError, CertificateError, DigitallySignedStruct, DistinguishedName, ExtendedKeyPurpose,
    OtherError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};

use crate::provider::mesh_provider;
use crate::trust::crl::Revocations;
use crate::trust::{Peer, PeerRole, Rules, Trust};

/// Why a certificate was refused that webpki alone would not have refused.
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
    /// A root that we know signed for a trust domain that it may not speak for.
    #[error("peer presented {}, signed by a root that may not speak for that trust domain", list(presented))]
    UnboundRoot {
        /// Every URI of the peer's leaf.
        presented: Vec<String>,
    },
    /// It is not known who is revoked.
    #[error("no peer is accepted while the revocation list is not known: {0}")]
    NoRevocationList(String),
}

/// The refusal inside a TLS error, if that is what it is.
#[must_use]
pub fn rejection(error: &rustls::Error) -> Option<&VerifyError> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => inner.downcast_ref(),
        _ => None,
    }
}

/// Whether we refused a peer because of a revocation list: it is on one, or there should be one and there is none.
#[must_use]
pub fn is_revocation(error: &rustls::Error) -> bool {
    matches!(error, rustls::Error::InvalidCertificate(CertificateError::Revoked))
        || matches!(error, rustls::Error::InvalidCertRevocationList(_))
        || matches!(rejection(error), Some(VerifyError::NoRevocationList(_)))
}

/// What both directions verify by.
struct Judge {
    own: TrustDomain,
    roots: Arc<RootCertStore>,
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Accepts servers that prove one of the expected identities.
pub(crate) struct ServerIdentity {
    judge: Judge,
    expected: Vec<SpiffeId>,
}

/// Accepts clients that prove an identity of our trust domain or of an alias.
pub(crate) struct ClientIdentity {
    judge: Judge,
}

/// Every URI of a leaf, whatever its form.
pub(crate) fn uris(leaf: &CertificateDer<'_>) -> Result<Vec<String>, webpki::Error> {
    Ok(EndEntityCert::try_from(leaf)?.valid_uri_names().map(str::to_owned).collect())
}

/// Every URI of a leaf that is an identity in the mesh's form.
pub(crate) fn spiffe_ids(leaf: &CertificateDer<'_>) -> Result<Vec<SpiffeId>, webpki::Error> {
    Ok(EndEntityCert::try_from(leaf)?.valid_uri_names().filter_map(|uri| uri.parse().ok()).collect())
}

/// Whether a peer that was let in would still be, at that time and with the revocations of now.
pub(crate) fn still_stands(peer: &Peer, rules: &Rules) -> bool {
    let Some((leaf, intermediates)) = peer.chain.split_first() else { return false };
    let anchors = rules.all_anchors(&peer.roots);
    path(leaf, intermediates, &anchors, peer.at, peer.role, &rules.revocations).is_ok()
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

/// Verifies a chain to one of `anchors`: validity, usage, signatures, revocations of the whole chain. A certificate that
/// no list speaks of is not revoked, and a list does not lose its force by its age.
fn path(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
    at: UnixTime,
    role: PeerRole,
    revocations: &Revocations,
) -> Result<(), webpki::Error> {
    let usage = match role {
        PeerRole::Client => KeyUsage::client_auth,
        PeerRole::Server => KeyUsage::server_auth,
    };
    let algorithms = mesh_provider().signature_verification_algorithms.all;
    let leaf = EndEntityCert::try_from(leaf)?;
    let verify = |lists: &[&CertRevocationList<'_>]| {
        let revocation = RevocationOptionsBuilder::new(lists).ok().map(|builder| {
            builder
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Ignore)
                .build()
        });
        leaf.verify_for_usage(algorithms, anchors, intermediates, at, usage(), revocation, None).map(drop)
    };
    let Revocations::Listed(lists) = revocations else { return verify(&[]) };
    if !revocations.has_rivals() {
        return verify(&lists.iter().collect::<Vec<_>>());
    }
    by_each(lists, verify)
}

/// webpki takes the first list of an issuer's name for the issuer's. While a CA changes its key, or when an older list
/// stands beside a newer one, there are several, and each counts for itself; one whose signature is not the issuer's is
/// passed over if another list of that name has the right one.
fn by_each(
    lists: &[CertRevocationList<'static>],
    verify: impl Fn(&[&CertRevocationList<'_>]) -> Result<(), webpki::Error>,
) -> Result<(), webpki::Error> {
    use webpki::Error::{InvalidCrlSignatureForPublicKey, InvalidSignatureForPublicKey};
    // From here on only a list can be what fails.
    verify(&[])?;
    let (mut proven, mut foreign) = (Vec::new(), Vec::new());
    for list in lists {
        match verify(&[list]) {
            Ok(()) => proven.push(list.issuer()),
            // The other one where a root of the same name was tried first.
            Err(InvalidCrlSignatureForPublicKey | InvalidSignatureForPublicKey) => {
                foreign.push(list.issuer());
            }
            Err(error) => return Err(error),
        }
    }
    if foreign.iter().all(|issuer| proven.contains(issuer)) {
        Ok(())
    } else {
        Err(InvalidCrlSignatureForPublicKey)
    }
}

/// webpki's errors under the names that rustls has for them.
fn named(error: webpki::Error) -> rustls::Error {
    use webpki::Error as E;
    match error {
        E::BadDer | E::BadDerTime | E::TrailingData(_) => CertificateError::BadEncoding.into(),
        E::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }.into()
        }
        E::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after }.into(),
        E::InvalidCertValidity => CertificateError::Expired.into(),
        E::UnknownIssuer => CertificateError::UnknownIssuer.into(),
        E::CertRevoked => CertificateError::Revoked.into(),
        E::InvalidSignatureForPublicKey => CertificateError::BadSignature.into(),
        E::IssuerNotCrlSigner => CertRevocationListError::IssuerInvalidForCrl.into(),
        E::InvalidCrlSignatureForPublicKey => CertRevocationListError::BadSignature.into(),
        E::RequiredEkuNotFoundContext(context) => CertificateError::InvalidPurposeContext {
            required: purpose(context.required.oid_values()),
            presented: context.present.into_iter().map(|usage| purpose(usage.into_iter())).collect(),
        }
        .into(),
        other => CertificateError::Other(OtherError(Arc::new(other))).into(),
    }
}

fn purpose(values: impl Iterator<Item = usize>) -> ExtendedKeyPurpose {
    match values.collect::<Vec<_>>().as_slice() {
        [1, 3, 6, 1, 5, 5, 7, 3, 1] => ExtendedKeyPurpose::ServerAuth,
        [1, 3, 6, 1, 5, 5, 7, 3, 2] => ExtendedKeyPurpose::ClientAuth,
        other => ExtendedKeyPurpose::Other(other.to_vec()),
    }
}

// === impl VerifyError ===

impl fmt::Debug for VerifyError {
    /// The same as `Display`: rustls prints the errors of verifiers with `Debug`, and its text is what is logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl Judge ===

impl Judge {
    fn new(own: &TrustDomain, roots: Arc<RootCertStore>, trust: &Trust) -> Self {
        let algorithms = trust.key_exchange().provider().signature_verification_algorithms;
        Self { own: own.clone(), roots, trust: trust.clone(), algorithms }
    }

    /// The identities of a peer whose chain leads to a root that may speak for all of them.
    fn identities(
        &self,
        rules: &Rules,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        role: PeerRole,
    ) -> Result<Vec<SpiffeId>, rustls::Error> {
        if let Revocations::Unknown(reason) = &*rules.revocations {
            return Err(refuse(VerifyError::NoRevocationList(reason.clone())));
        }
        let shown = spiffe_ids(leaf).map_err(named)?;
        let verify = |anchors: &[_]| path(leaf, intermediates, anchors, now, role, &rules.revocations);
        match verify(&rules.anchors(&self.own, &self.roots, &shown, now)) {
            Ok(()) => Ok(shown),
            Err(webpki::Error::UnknownIssuer) if verify(&rules.all_anchors(&self.roots)).is_ok() => {
                Err(refuse(VerifyError::UnboundRoot { presented: uris(leaf).map_err(named)? }))
            }
            Err(error) => Err(named(error)),
        }
    }

    fn tls12(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn tls13(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }
}

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judge").field("own", &self.own).finish_non_exhaustive()
    }
}

// === impl ServerIdentity ===

impl ServerIdentity {
    pub(crate) fn new(
        own: &TrustDomain,
        roots: Arc<RootCertStore>,
        trust: &Trust,
        expected: &[SpiffeId],
    ) -> Self {
        Self { judge: Judge::new(own, roots, trust), expected: expected.to_vec() }
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
        let rules = self.judge.trust.rules();
        let shown = self.judge.identities(&rules, end_entity, intermediates, now, PeerRole::Server)?;
        let is_expected = |id: &SpiffeId| {
            self.expected.iter().any(|expected| rules.domains.same_identity(&self.judge.own, id, expected))
        };
        if shown.iter().any(is_expected) {
            return Ok(ServerCertVerified::assertion());
        }
        let presented = uris(end_entity).map_err(named)?;
        Err(refuse(VerifyError::UnexpectedIdentity { expected: self.expected.clone(), presented }))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.judge.tls12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.judge.tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.judge.algorithms.supported_schemes()
    }
}

// === impl ClientIdentity ===

impl ClientIdentity {
    pub(crate) fn new(own: &TrustDomain, roots: Arc<RootCertStore>, trust: &Trust) -> Self {
        Self { judge: Judge::new(own, roots, trust) }
    }
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIdentity").field("trust_domain", &self.judge.own).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for ClientIdentity {
    /// None: roots change while a configuration lives.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let rules = self.judge.trust.rules();
        let shown = self.judge.identities(&rules, end_entity, intermediates, now, PeerRole::Client)?;
        // The first is the one that policies will see, so it is the one to look at: a second identity of ours must not
        // let a first one of another domain in.
        let own = &self.judge.own;
        if shown.first().is_some_and(|id| rules.domains.same(own, &id.trust_domain)) {
            return Ok(ClientCertVerified::assertion());
        }
        let presented = uris(end_entity).map_err(named)?;
        Err(refuse(VerifyError::ForeignTrustDomain { expected: own.clone(), presented }))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.judge.tls12(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.judge.tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.judge.algorithms.supported_schemes()
    }
}
