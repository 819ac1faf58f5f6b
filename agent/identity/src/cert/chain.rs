//! Parsing of a certificate chain in PEM, as a CA returns it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// One certificate as the config dump shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertSummary {
    /// PEM text.
    pub pem: String,
    /// Serial number in decimal.
    pub serial_number: String,
    /// Start of validity, RFC 3339 in whole seconds.
    pub valid_from: String,
    /// End of validity, RFC 3339 in whole seconds.
    pub expiration_time: String,
}

/// Why an element of a chain was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The element holds no certificate.
    #[error("element {0} of the chain holds no PEM certificate")]
    Empty(usize),
    /// A certificate of the element does not parse.
    #[error("element {element} of the chain: {reason}")]
    Unreadable {
        /// Position in the chain, from 0.
        element: usize,
        /// The parser's error.
        reason: String,
    },
}

/// One certificate of a chain.
pub(super) struct ParsedCert {
    pub(super) der: CertificateDer<'static>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    pub(super) summary: CertSummary,
}

impl ChainError {
    pub(super) fn unreadable(element: usize, reason: &impl ToString) -> Self {
        Self::Unreadable { element, reason: reason.to_string() }
    }
}

/// Parses every certificate of the chain's element number `element`.
pub(super) fn parse(element: usize, text: &str) -> Result<Vec<ParsedCert>, ChainError> {
    let certs: Vec<ParsedCert> =
        pem_blocks(text).map(|pem| parse_one(element, pem)).collect::<Result<_, ChainError>>()?;
    if certs.is_empty() { Err(ChainError::Empty(element)) } else { Ok(certs) }
}

fn parse_one(element: usize, pem: &str) -> Result<ParsedCert, ChainError> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| ChainError::unreadable(element, &error))?;
    let (_, x509) =
        x509_parser::parse_x509_certificate(&der).map_err(|error| ChainError::unreadable(element, &error))?;
    let validity = x509.validity();
    let (not_before, not_after) = (time(&validity.not_before), time(&validity.not_after));
    let summary = CertSummary {
        pem: format!("{pem}\n"),
        serial_number: x509.tbs_certificate.serial.to_string(),
        valid_from: rfc3339(not_before),
        expiration_time: rfc3339(not_after),
    };
    Ok(ParsedCert { der, not_before, not_after, summary })
}

/// The text of each certificate in a bundle, without what stands between them: the config dump shows certificates one by
/// one.
fn pem_blocks(text: &str) -> impl Iterator<Item = &str> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let mut rest = text;
    std::iter::from_fn(move || {
        let start = rest.find(BEGIN)?;
        let end = start + rest[start..].find(END)? + END.len();
        let block = &rest[start..end];
        rest = &rest[end..];
        Some(block)
    })
}

fn time(asn1: &x509_parser::time::ASN1Time) -> SystemTime {
    let seconds = asn1.timestamp();
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let shifted =
        if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    shifted.unwrap_or(UNIX_EPOCH)
}

/// RFC 3339 in UTC, whole seconds.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let precise = isthmus_rt::log::timestamp(time);
    let seconds = precise.split('.').next().unwrap_or_default();
    format!("{seconds}Z")
}
