//! Why a peer's certificate was refused: the errors that webpki does not have, and webpki's own under rustls' names.

use std::fmt;
use std::sync::Arc;

use isthmus_model::{SpiffeId, TrustDomain};
use rustls::{CertRevocationListError, CertificateError, ExtendedKeyPurpose, OtherError};

/// Why a certificate was refused that webpki alone would have accepted.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Client side: none of the server's identities is an expected one.
    #[error("peer presented {}, expected {}", list(presented), list(expected))]
    UnexpectedIdentity {
        /// Identities that would have been accepted.
        expected: Vec<SpiffeId>,
        /// Every URI name of the peer's leaf.
        presented: Vec<String>,
    },
    /// Server side: the client's identity is not in our trust domain.
    #[error("peer presented {}, expected an identity of trust domain {expected}", list(presented))]
    ForeignTrustDomain {
        /// Our trust domain.
        expected: TrustDomain,
        /// Every URI name of the peer's leaf.
        presented: Vec<String>,
    },
    /// The chain leads to a known root that is not authorized for the trust domain of the leaf.
    #[error(
        "peer presented {}, signed by a root that is not authorized for that trust domain (see caCertificates of the \
         mesh config)",
        list(presented)
    )]
    UnboundRoot {
        /// Every URI name of the peer's leaf.
        presented: Vec<String>,
    },
    /// A revocation list is configured and could not be loaded, so no peer can be accepted.
    #[error("no peer is accepted until the revocation list (CRL_PATH) is loaded: {0}")]
    NoRevocationList(String),
}

/// The [`VerifyError`] inside a TLS error, if there is one.
#[must_use]
pub fn rejection(error: &rustls::Error) -> Option<&VerifyError> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => inner.downcast_ref(),
        _ => None,
    }
}

/// Whether we refused the peer because of revocation: a list names it, or a list is required and none could be used.
#[must_use]
pub fn is_revocation(error: &rustls::Error) -> bool {
    matches!(error, rustls::Error::InvalidCertificate(CertificateError::Revoked))
        || matches!(error, rustls::Error::InvalidCertRevocationList(_))
        || matches!(rejection(error), Some(VerifyError::NoRevocationList(_)))
}

/// Wraps our error as rustls wants it from a verifier.
pub(super) fn into_rustls(error: VerifyError) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

/// Translates webpki's errors into rustls' names for them, which determine the TLS alert the peer receives.
pub(super) fn from_webpki(error: webpki::Error) -> rustls::Error {
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

fn purpose(oid: impl Iterator<Item = usize>) -> ExtendedKeyPurpose {
    match oid.collect::<Vec<_>>().as_slice() {
        [1, 3, 6, 1, 5, 5, 7, 3, 1] => ExtendedKeyPurpose::ServerAuth,
        [1, 3, 6, 1, 5, 5, 7, 3, 2] => ExtendedKeyPurpose::ClientAuth,
        other => ExtendedKeyPurpose::Other(other.to_vec()),
    }
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    match items {
        [] => "no identity".to_owned(),
        [one] => one.to_string(),
        many => format!("one of [{}]", many.iter().map(T::to_string).collect::<Vec<_>>().join(", ")),
    }
}

impl fmt::Debug for VerifyError {
    /// Same text as `Display`: rustls formats a verifier's error with `Debug`, and that text ends up in the logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_for_revocation_is_told_from_others() {
        let refused = rustls::Error::InvalidCertificate;
        for (error, want) in [
            (refused(CertificateError::Revoked), true),
            (rustls::Error::InvalidCertRevocationList(CertRevocationListError::BadSignature), true),
            (into_rustls(VerifyError::NoRevocationList("it was not read yet".to_owned())), true),
            (into_rustls(VerifyError::UnboundRoot { presented: vec![] }), false),
            (refused(CertificateError::Expired), false),
            (refused(CertificateError::Other(OtherError(Arc::new(webpki::Error::UnknownIssuer)))), false),
            (rustls::Error::DecryptError, false),
        ] {
            assert_eq!(is_revocation(&error), want, "{error:?}");
        }
    }

    #[test]
    fn an_error_says_what_was_presented_also_within_rustls_error() {
        for (presented, text) in [
            (&[][..], "peer presented no identity, expected an identity of trust domain td"),
            (&["a"], "peer presented a, expected an identity of trust domain td"),
            (&["a", "b"], "peer presented one of [a, b], expected an identity of trust domain td"),
        ] {
            let presented = presented.iter().map(|uri| (*uri).to_owned()).collect();
            let error = into_rustls(VerifyError::ForeignTrustDomain { expected: "td".into(), presented });
            assert_eq!(rejection(&error).map(ToString::to_string).as_deref(), Some(text));
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn purposes_have_their_names() {
        use ExtendedKeyPurpose::{ClientAuth, Other, ServerAuth};
        let oid = |last: usize| [1, 3, 6, 1, 5, 5, 7, 3, last].into_iter();
        assert_eq!([purpose(oid(1)), purpose(oid(2))], [ServerAuth, ClientAuth]);
        assert_eq!(purpose(oid(9)), Other(oid(9).collect()));
    }
}
