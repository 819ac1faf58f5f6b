//! Certificate revocation lists (RFC 5280 §5): parsing a file of them. Which lists are in force is [`crate::Trust`]'s
//! matter.

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use webpki::{CertRevocationList, EndEntityCert, OwnedCertRevocationList};

/// The revocation lists in force.
#[derive(Debug)]
pub enum Revocations {
    /// There are no lists: no certificate is revoked.
    None,
    /// Certificates on these lists are revoked.
    Listed(Vec<CertRevocationList<'static>>),
    /// Lists are configured and could not be loaded: no new peer is accepted. The text is the reason.
    Unknown(String),
}

/// Why a file could not be parsed as revocation lists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("revocation list {list}: {reason}")]
pub struct CrlError {
    /// Position in the file, from 1.
    list: usize,
    /// What is wrong.
    reason: String,
}

impl Revocations {
    /// Parses a file: any number of PEM lists (other sections are skipped), or one list in DER. An empty file revokes no
    /// certificate.
    ///
    /// # Errors
    /// When one of the lists does not parse; then none of the file is used.
    pub fn parse(bytes: &[u8]) -> Result<Self, CrlError> {
        if bytes.trim_ascii().is_empty() {
            return Ok(Self::None);
        }
        let mut lists = Vec::new();
        let mut add = |der: &[u8], list: usize| match OwnedCertRevocationList::from_der(der) {
            Ok(parsed) => {
                lists.push(parsed.into());
                Ok(())
            }
            Err(error) => Err(CrlError { list, reason: error.to_string() }),
        };
        if bytes.windows(PEM.len()).any(|window| window == PEM) {
            for (at, section) in CertificateRevocationListDer::pem_slice_iter(bytes).enumerate() {
                let list = at + 1;
                let der = section.map_err(|error| CrlError { list, reason: error.to_string() })?;
                add(&der, list)?;
            }
        } else {
            add(bytes, 1)?;
        }
        Ok(if lists.is_empty() { Self::None } else { Self::Listed(lists) })
    }

    /// Number of lists.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Listed(lists) => lists.len(),
            Self::None | Self::Unknown(_) => 0,
        }
    }

    /// Whether there is no list.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether two lists have the same issuer name.
    pub(crate) fn has_duplicate_issuers(&self) -> bool {
        let Self::Listed(lists) = self else { return false };
        let same = |(at, list): (usize, &CertRevocationList<'_>)| {
            lists[..at].iter().any(|other| other.issuer() == list.issuer())
        };
        lists.iter().enumerate().any(same)
    }

    /// Whether a list of the certificate's issuer has its serial number. Signatures are not verified: this only selects
    /// the certificates to verify again.
    pub(crate) fn mentions(&self, certificate: &CertificateDer<'_>) -> bool {
        let Self::Listed(lists) = self else { return false };
        let Ok(parsed) = EndEntityCert::try_from(certificate) else { return false };
        lists.iter().any(|list| {
            list.issuer() == parsed.issuer() && matches!(list.find_serial(parsed.serial()), Ok(Some(_)))
        })
    }
}

/// A file that contains this is PEM, else it is DER.
const PEM: &[u8] = b"-----BEGIN ";

#[cfg(test)]
mod tests {
    use isthmus_kit::pki::Ca;

    use super::*;

    #[test]
    fn a_file_holds_any_number_of_lists() {
        let (one, two) = (Ca::new("one").unwrap(), Ca::new("two").unwrap());
        let leaf = one.workload("spiffe://td/ns/n/sa/a").unwrap();
        let first = one.crl(&[&leaf.cert]).unwrap();
        let both = format!("a comment\n{}{first}{}", one.root_pem(), two.crl(&[]).unwrap());
        let two_lists = Revocations::parse(both.as_bytes()).unwrap();
        assert!(two_lists.len() == 2 && !two_lists.is_empty() && !two_lists.has_duplicate_issuers());
        let again = Revocations::parse(format!("{both}{first}").as_bytes()).unwrap();
        assert!(again.len() == 3 && again.has_duplicate_issuers());
        let der = CertificateRevocationListDer::from_pem_slice(first.as_bytes()).unwrap();
        assert_eq!(Revocations::parse(&der).unwrap().len(), 1);
        for nothing in ["", " \n", &one.root_pem()] {
            let parsed = Revocations::parse(nothing.as_bytes()).unwrap();
            assert!(matches!(parsed, Revocations::None) && parsed.is_empty(), "{nothing:?}");
        }
    }

    #[test]
    fn one_unreadable_list_rejects_the_whole_file() {
        let ca = Ca::new("one").unwrap();
        let good = ca.crl(&[]).unwrap();
        let half = &good[..good.len() / 2];
        let broken = format!("{good}-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n");
        for (text, list) in [("garbage", 1), (half, 1), (broken.as_str(), 2)] {
            let error = Revocations::parse(text.as_bytes()).unwrap_err();
            assert_eq!(error.list, list, "{text}: {error}");
        }
    }

    #[test]
    fn a_list_mentions_only_certificates_of_its_own_issuer() {
        let (one, two) = (Ca::new("one").unwrap(), Ca::new("two").unwrap());
        let (a, b) =
            (one.workload("spiffe://td/ns/n/sa/a").unwrap(), one.workload("spiffe://td/ns/n/sa/b").unwrap());
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let listed = Revocations::parse(one.crl(&[&a.cert]).unwrap().as_bytes()).unwrap();
        assert!(listed.mentions(&der(&a.cert)) && !listed.mentions(&der(&b.cert)));
        let elsewhere = Revocations::parse(two.crl(&[&a.cert]).unwrap().as_bytes()).unwrap();
        assert!(!elsewhere.mentions(&der(&a.cert)), "a serial number is only unique per issuer");
        assert!(!Revocations::None.mentions(&der(&a.cert)));
    }
}
