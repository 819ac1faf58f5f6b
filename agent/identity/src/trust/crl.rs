//! Certificate revocation lists: what a file of them says.

use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use webpki::{CertRevocationList, EndEntityCert, OwnedCertRevocationList};

use rustls_pki_types::CertificateDer;

/// Who is revoked.
#[derive(Debug)]
pub enum Revocations {
    /// Nobody: there are no lists.
    None,
    /// Whoever these lists name.
    Listed(Vec<CertRevocationList<'static>>),
    /// It is not known, so that nobody new can be trusted. The text says why.
    Unknown(String),
}

/// Why a file is no list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("revocation list {list}: {reason}")]
pub struct CrlError {
    /// Position in the file, from 1.
    list: usize,
    /// What is wrong.
    reason: String,
}

impl Revocations {
    /// Reads a file: any number of PEM lists (other sections are skipped), or one list in DER. An empty one revokes
    /// nobody.
    ///
    /// # Errors
    /// When one of the lists does not parse: none of the file's then counts.
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

    /// How many lists there are.
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

    /// Whether two lists have the same issuer's name.
    pub(crate) fn has_rivals(&self) -> bool {
        let Self::Listed(lists) = self else { return false };
        let same = |(at, list): (usize, &CertRevocationList<'_>)| {
            lists[..at].iter().any(|other| other.issuer() == list.issuer())
        };
        lists.iter().enumerate().any(same)
    }

    /// Whether a list of the certificate's issuer has its serial number. No signature is looked at: this only finds
    /// whom to look at.
    pub(super) fn mentions(&self, certificate: &CertificateDer<'_>) -> bool {
        let Self::Listed(lists) = self else { return false };
        let Ok(parsed) = EndEntityCert::try_from(certificate) else { return false };
        lists.iter().any(|list| {
            list.issuer() == parsed.issuer() && matches!(list.find_serial(parsed.serial()), Ok(Some(_)))
        })
    }
}

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
        assert_eq!(Revocations::parse(both.as_bytes()).unwrap().len(), 2);
        let der = CertificateRevocationListDer::from_pem_slice(first.as_bytes()).unwrap();
        assert_eq!(Revocations::parse(&der).unwrap().len(), 1);
        for nothing in ["", " \n", &one.root_pem()] {
            assert!(matches!(Revocations::parse(nothing.as_bytes()), Ok(Revocations::None)), "{nothing:?}");
        }
    }

    #[test]
    fn what_is_no_list_is_refused_whole() {
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
    fn a_list_mentions_what_its_own_issuer_revoked() {
        let (one, two) = (Ca::new("one").unwrap(), Ca::new("two").unwrap());
        let (a, b) =
            (one.workload("spiffe://td/ns/n/sa/a").unwrap(), one.workload("spiffe://td/ns/n/sa/b").unwrap());
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let listed = Revocations::parse(one.crl(&[&a.cert]).unwrap().as_bytes()).unwrap();
        assert!(listed.mentions(&der(&a.cert)) && !listed.mentions(&der(&b.cert)));
        let elsewhere = Revocations::parse(two.crl(&[&a.cert]).unwrap().as_bytes()).unwrap();
        assert!(!elsewhere.mentions(&der(&a.cert)), "another CA's serial numbers are other numbers");
        assert!(!Revocations::None.mentions(&der(&a.cert)));
    }
}
