//! Certification paths: a peer's chain checked against trust anchors and revocation lists, and the URI names of a leaf.
//!
//! Pure: anchors, lists and the time are arguments. Which roots may vouch for an identity is decided in [`crate::trust`],
//! which identities are acceptable in [`crate::verify`].

use isthmus_model::SpiffeId;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};

use crate::constraints;
use crate::crl::Revocations;
use crate::provider::mesh_provider;

/// Which side of the connection the peer is; it determines the extended key usage its leaf must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerRole {
    /// The peer dialled us.
    Client,
    /// We dialled the peer.
    Server,
}

/// Every URI name of a leaf, whatever its form.
pub(crate) fn uris(leaf: &CertificateDer<'_>) -> Result<Vec<String>, webpki::Error> {
    Ok(EndEntityCert::try_from(leaf)?.valid_uri_names().map(str::to_owned).collect())
}

/// Every URI name of a leaf that is a SPIFFE identity in the mesh's form.
pub(crate) fn spiffe_ids(leaf: &CertificateDer<'_>) -> Result<Vec<SpiffeId>, webpki::Error> {
    Ok(EndEntityCert::try_from(leaf)?.valid_uri_names().filter_map(|uri| uri.parse().ok()).collect())
}

/// Verifies a path from `leaf` to one of `anchors`: validity at `at`, key usage, signatures, and the revocation status
/// of every certificate of the path.
///
/// A certificate that no list covers counts as not revoked, and a list past its `nextUpdate` stays in force: refusing
/// the whole mesh because a CRL was not republished in time would be worse than a stale list.
pub(crate) fn verify(
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
    let parsed = EndEntityCert::try_from(leaf)?;
    let verify_under = |anchors: &[TrustAnchor<'_>], lists: &[&CertRevocationList<'_>]| {
        let revocation = RevocationOptionsBuilder::new(lists).ok().map(|builder| {
            builder
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Ignore)
                .build()
        });
        parsed.verify_for_usage(algorithms, anchors, intermediates, at, usage(), revocation, None).map(drop)
    };
    let verify_with = |lists: &[&CertRevocationList<'_>]| {
        let found = verify_under(anchors, lists);
        // webpki checks names last. One anchor at a time, since another one's failure could hide that only names are
        // objected to, and constraints are an anchor's too.
        let only_names = |anchor: &&TrustAnchor<'_>| {
            matches!(
                verify_under(std::slice::from_ref(*anchor), lists),
                Err(webpki::Error::NameConstraintViolation)
            )
        };
        let permitted = |anchor: &TrustAnchor<'_>| constraints::are_met(leaf, intermediates, anchor);
        match found {
            Err(error)
                if error != webpki::Error::UnknownIssuer
                    && anchors.iter().filter(only_names).any(permitted) =>
            {
                Ok(())
            }
            found => found,
        }
    };
    let Revocations::Listed(lists) = revocations else { return verify_with(&[]) };
    if !revocations.has_duplicate_issuers() {
        return verify_with(&lists.iter().collect::<Vec<_>>());
    }
    verify_with_each(lists, verify_with)
}

/// Applies lists one by one where several have the same issuer name.
///
/// webpki takes the first list with an issuer's name for that issuer's. While a CA changes its key, or when an older
/// list stands beside a newer one, there are several, and each of them is in force. A list whose signature is not the
/// issuer's is skipped only if another list of the same name verifies.
fn verify_with_each(
    lists: &[CertRevocationList<'static>],
    verify_with: impl Fn(&[&CertRevocationList<'_>]) -> Result<(), webpki::Error>,
) -> Result<(), webpki::Error> {
    use webpki::Error::{InvalidCrlSignatureForPublicKey, InvalidSignatureForPublicKey};
    // Rules out every failure that is not a list's, so that the errors below are the lists' doing.
    verify_with(&[])?;
    let (mut verified, mut mismatched) = (Vec::new(), Vec::new());
    for list in lists {
        match verify_with(&[list]) {
            Ok(()) => verified.push(list.issuer()),
            // webpki reports the second one when it tried a root with the same name first.
            Err(InvalidCrlSignatureForPublicKey | InvalidSignatureForPublicKey) => {
                mismatched.push(list.issuer());
            }
            Err(error) => return Err(error),
        }
    }
    if mismatched.iter().all(|issuer| verified.contains(issuer)) {
        Ok(())
    } else {
        Err(InvalidCrlSignatureForPublicKey)
    }
}
