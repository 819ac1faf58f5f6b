//! A certificate with its key and roots, parsed once, and the TLS configurations made from it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use isthmus_model::SpiffeId;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, CommonState, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use crate::provider::{ALPN_H2, VERSIONS};
use crate::trust::{Peer, PeerRole, Trust, Vouched};
use crate::verify::{ClientIdentity, ServerIdentity, spiffe_ids};

/// A leaf with its key, its intermediates, and the roots that its peers are judged by.
pub struct Certificate {
    identity: SpiffeId,
    leaf_ids: Vec<SpiffeId>,
    chain: Vec<Described>,
    roots: Vec<Described>,
    not_before: SystemTime,
    not_after: SystemTime,
    roots_expire: SystemTime,
    trusted: Arc<RootCertStore>,
    trust: Trust,
    client: ClientConfig,
    /// Made so far, by whom they expect.
    clients: Mutex<HashMap<Vec<SpiffeId>, Arc<ClientConfig>>>,
    server: Arc<ServerConfig>,
}

/// Client configurations that are kept. A workload that calls more services than this has some made anew.
const CLIENTS: usize = 256;

/// One certificate as the config dump shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// PEM text.
    pub pem: String,
    /// Serial number in decimal.
    pub serial_number: String,
    /// Start of validity, RFC 3339 in whole seconds.
    pub valid_from: String,
    /// End of validity, RFC 3339 in whole seconds.
    pub expiration_time: String,
}

/// Why a chain makes no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    /// A leaf needs roots beside it.
    #[error("chain has {0} element(s), at least a leaf and the roots are needed")]
    NoRoots(usize),
    /// An element holds no certificate.
    #[error("element {0} of the chain holds no PEM certificate")]
    Empty(usize),
    /// A certificate does not parse.
    #[error("element {element} of the chain: {reason}")]
    Unreadable {
        /// Position in the chain, from 0.
        element: usize,
        /// What is wrong.
        reason: String,
    },
    /// The key does not parse, or is not the leaf's.
    #[error("private key: {0}")]
    Key(String),
    /// The leaf is for somebody else.
    #[error("leaf is for {}, asked for {asked}", shown.join(", "))]
    WrongIdentity {
        /// Who was asked for.
        asked: SpiffeId,
        /// URIs of the leaf.
        shown: Vec<String>,
    },
    /// The leaf is not valid any more.
    #[error("leaf expired at {0}")]
    Expired(String),
    /// No TLS configuration can be made of it.
    #[error("no TLS configuration can be made: {0}")]
    Tls(String),
}

struct Parsed {
    der: CertificateDer<'static>,
    not_before: SystemTime,
    not_after: SystemTime,
    described: Described,
}

// === impl Certificate ===

impl Certificate {
    /// Puts a certificate together. `chain` is PEM: the leaf first, intermediates, **the last element the roots**.
    ///
    /// # Errors
    /// When anything does not parse, the key is not the leaf's, or there are no roots.
    pub fn from_pem(identity: SpiffeId, key_pem: &str, chain: &[String]) -> Result<Self, CertError> {
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|error| CertError::Key(error.to_string()))?;
        Self::new(identity, key, chain)
    }

    /// As [`Certificate::from_pem`], with a key that was already parsed.
    ///
    /// # Errors
    /// As [`Certificate::from_pem`].
    pub fn new(identity: SpiffeId, key: PrivateKeyDer<'static>, chain: &[String]) -> Result<Self, CertError> {
        Self::with_trust(identity, key, chain, &Trust::default())
    }

    /// As [`Certificate::new`], for a process whose peers are judged by `trust` as well.
    ///
    /// # Errors
    /// As [`Certificate::from_pem`].
    pub fn with_trust(
        identity: SpiffeId,
        key: PrivateKeyDer<'static>,
        chain: &[String],
        trust: &Trust,
    ) -> Result<Self, CertError> {
        let Some((roots, [_, ..])) = chain.split_last() else {
            return Err(CertError::NoRoots(chain.len()));
        };
        let last = chain.len() - 1;
        let mut certs = Vec::new();
        for (element, text) in chain[..last].iter().enumerate() {
            certs.extend(parse(element, text)?);
        }
        let roots = parse(last, roots)?;
        let mut trusted = RootCertStore::empty();
        for root in &roots {
            let reason =
                |error: rustls::Error| CertError::Unreadable { element: last, reason: error.to_string() };
            trusted.add(root.der.clone()).map_err(reason)?;
        }
        let trusted = Arc::new(trusted);
        let (not_before, not_after) = (certs[0].not_before, certs[0].not_after);
        let roots_expire = roots.iter().map(|root| root.not_after).min().unwrap_or(not_after);
        let unreadable =
            |error: webpki::Error| CertError::Unreadable { element: 0, reason: error.to_string() };
        let leaf_ids = spiffe_ids(&certs[0].der).map_err(unreadable)?;
        let ders = certs.iter().map(|cert| cert.der.clone()).collect();
        let key = CertifiedKey::from_der(ders, key, &trust.key_exchange().provider())
            .map_err(|error| CertError::Key(error.to_string()))?;
        let key = Arc::new(SingleCertAndKey::from(key));
        let tls = |error: rustls::Error| CertError::Tls(error.to_string());
        Ok(Self {
            client: client_base(&identity, &trusted, trust, &key).map_err(tls)?,
            clients: Mutex::default(),
            server: Arc::new(server(&identity, &trusted, trust, &key).map_err(tls)?),
            identity,
            leaf_ids,
            chain: certs.into_iter().map(|cert| cert.described).collect(),
            roots: roots.into_iter().map(|cert| cert.described).collect(),
            not_before,
            not_after,
            roots_expire,
            trusted,
            trust: trust.clone(),
        })
    }

    /// Who it was asked for.
    #[must_use]
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// Checks that the leaf's first identity is the one that was asked for.
    ///
    /// # Errors
    /// [`CertError::WrongIdentity`] when it is not.
    pub fn check_identity(&self) -> Result<(), CertError> {
        if self.leaf_ids.first() == Some(&self.identity) {
            return Ok(());
        }
        let shown = self.leaf_ids.iter().map(ToString::to_string).collect();
        Err(CertError::WrongIdentity { asked: self.identity.clone(), shown })
    }

    /// Start of the leaf's validity.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// End of the leaf's validity.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// When the first of the roots expires.
    #[must_use]
    pub fn roots_expire(&self) -> SystemTime {
        self.roots_expire
    }

    /// Whether the leaf has not expired yet.
    #[must_use]
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        now < self.not_after
    }

    /// Leaf and intermediates, for the dump.
    #[must_use]
    pub fn chain(&self) -> &[Described] {
        &self.chain
    }

    /// Roots, for the dump.
    #[must_use]
    pub fn roots(&self) -> &[Described] {
        &self.roots
    }

    /// Configuration for dialling a peer that must prove one of `expected`. With an empty set every handshake fails.
    /// Asked again for the same ones, it answers the same configuration.
    #[must_use]
    pub fn client_config(&self, expected: &[SpiffeId]) -> Arc<ClientConfig> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = clients.get(expected) {
            return Arc::clone(known);
        }
        if clients.len() >= CLIENTS {
            clients.clear();
        }
        let mut config = self.client.clone();
        let verifier = ServerIdentity::new(
            &self.identity.trust_domain,
            Arc::clone(&self.trusted),
            &self.trust,
            expected,
        );
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        Arc::clone(clients.entry(expected.to_vec()).or_insert_with(|| Arc::new(config)))
    }

    /// Keeps track of the peer of a finished handshake that was made with one of this certificate's configurations, so
    /// that its connection ends when it is revoked. Nothing is tracked where no revocations are to be expected.
    #[must_use]
    pub fn vouch(&self, connection: &CommonState, role: PeerRole) -> Vouched {
        let chain = match connection.peer_certificates() {
            Some(shown) if !connection.is_handshaking() && self.trust.is_revocable() => shown,
            _ => return Vouched::default(),
        };
        let chain = chain.iter().map(|der| der.clone().into_owned()).collect();
        self.trust.vouch(Peer { chain, role, roots: Arc::clone(&self.trusted), at: UnixTime::now() })
    }

    /// Whether the peers of this certificate's connections are kept track of.
    #[must_use]
    pub fn is_revocable(&self) -> bool {
        self.trust.is_revocable()
    }

    pub(crate) fn trusted(&self) -> &RootCertStore {
        &self.trusted
    }

    /// Configuration for accepting peers, which must prove an identity of our own trust domain.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }
}

impl fmt::Debug for Certificate {
    /// Never the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let serial = self.chain.first().map(|leaf| leaf.serial_number.as_str());
        f.debug_struct("Certificate")
            .field("identity", &self.identity)
            .field("serial", &serial)
            .finish_non_exhaustive()
    }
}

fn client_base(
    identity: &SpiffeId,
    trusted: &Arc<RootCertStore>,
    trust: &Trust,
    key: &Arc<SingleCertAndKey>,
) -> Result<ClientConfig, rustls::Error> {
    // The empty expectation refuses everybody; `client_config` replaces it.
    let nobody = ServerIdentity::new(&identity.trust_domain, Arc::clone(trusted), trust, &[]);
    let mut config = ClientConfig::builder_with_provider(trust.key_exchange().provider())
        .with_protocol_versions(VERSIONS)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(nobody))
        .with_client_cert_resolver(Arc::<SingleCertAndKey>::clone(key));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.enable_sni = false;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn server(
    identity: &SpiffeId,
    trusted: &Arc<RootCertStore>,
    trust: &Trust,
    key: &Arc<SingleCertAndKey>,
) -> Result<ServerConfig, rustls::Error> {
    let verifier = ClientIdentity::new(&identity.trust_domain, Arc::clone(trusted), trust);
    let mut config = ServerConfig::builder_with_provider(trust.key_exchange().provider())
        .with_protocol_versions(VERSIONS)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::<SingleCertAndKey>::clone(key));
    // rustls refuses only clients that offer protocols without h2 among them; those that offer none are accepted.
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Every certificate of one element of the chain.
fn parse(element: usize, text: &str) -> Result<Vec<Parsed>, CertError> {
    let certs: Vec<Parsed> =
        pem_blocks(text).map(|pem| parse_one(element, pem)).collect::<Result<_, CertError>>()?;
    if certs.is_empty() { Err(CertError::Empty(element)) } else { Ok(certs) }
}

fn parse_one(element: usize, pem: &str) -> Result<Parsed, CertError> {
    let unreadable = |reason: String| CertError::Unreadable { element, reason };
    let der =
        CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| unreadable(error.to_string()))?;
    let (_, x509) =
        x509_parser::parse_x509_certificate(&der).map_err(|error| unreadable(error.to_string()))?;
    let validity = x509.validity();
    let (not_before, not_after) = (time(&validity.not_before), time(&validity.not_after));
    let described = Described {
        pem: format!("{pem}\n"),
        serial_number: x509.tbs_certificate.serial.to_string(),
        valid_from: rfc3339(not_before),
        expiration_time: rfc3339(not_after),
    };
    Ok(Parsed { not_before, not_after, described, der })
}

/// The text of each certificate in a bundle; what stands between them is dropped.
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

#[cfg(test)]
pub(crate) mod tests;
