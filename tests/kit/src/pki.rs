//! Certificates for tests: CAs, valid leaves, and leaves with one defect.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use rcgen::{
    CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams, CertifiedIssuer,
    CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate authority: a root, or an intermediate under one.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    root: String,
    /// The intermediates of a leaf's chain, PEM; empty for a root.
    intermediates: String,
}

/// What goes into a leaf. `Default` is a leaf that is valid now, for both directions, with no name at all.
#[derive(Debug, Clone)]
pub struct Spec {
    /// URIs, in this order.
    pub uris: Vec<String>,
    /// Host names and addresses.
    pub names: Vec<String>,
    /// From.
    pub not_before: SystemTime,
    /// Until.
    pub not_after: SystemTime,
    /// Extended key usages.
    pub usages: Vec<ExtendedKeyUsagePurpose>,
    /// Whether it may sign others.
    pub authority: bool,
}

/// The name constraints of an intermediate, all of them on the names of certificates below it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits<'a> {
    /// Permitted hosts of URIs.
    pub uris: &'a [&'a str],
    /// Excluded hosts of URIs.
    pub excluded_uris: &'a [&'a str],
    /// Permitted DNS names.
    pub names: &'a [&'a str],
    /// Permitted IPv4 ranges: address and mask.
    pub addresses: &'a [[u8; 8]],
}

/// A leaf with its key and the root that signed it, all PEM.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// The leaf, then its intermediates.
    pub cert: String,
    /// Its key, PKCS#8.
    pub key: String,
    /// The root.
    pub root: String,
}

impl Default for Spec {
    fn default() -> Self {
        let now = SystemTime::now();
        Self {
            uris: Vec::new(),
            names: Vec::new(),
            not_before: now - Duration::from_secs(60),
            not_after: now + Duration::from_secs(60 * 60),
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            authority: false,
        }
    }
}

// === impl Ca ===

impl Ca {
    /// A new CA. CAs of the same name are still different ones.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        Self::self_signed(authority(name))
    }

    fn self_signed(params: CertificateParams) -> anyhow::Result<Self> {
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let pem = root.pem();
        let issuer = Issuer::from_ca_cert_pem(&pem, KeyPair::from_pem(&root.key().serialize_pem())?)?;
        Ok(Self { issuer, root: pem, intermediates: String::new() })
    }

    /// An intermediate from its certificate, key and root, all PEM.
    ///
    /// # Errors
    /// When the certificate or the key does not parse.
    pub fn intermediate(cert: &str, key: &str, root: &str) -> anyhow::Result<Self> {
        let issuer = Issuer::from_ca_cert_pem(cert, KeyPair::from_pem(key)?)?;
        Ok(Self { issuer, root: root.to_owned(), intermediates: cert.to_owned() })
    }

    /// A new intermediate under this one.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn under(&self, name: &str) -> anyhow::Result<Self> {
        self.signed(authority(name))
    }

    fn signed(&self, params: CertificateParams) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?.pem();
        let mut made = Self::intermediate(&cert, &key.serialize_pem(), &self.root)?;
        made.intermediates.push_str(&self.intermediates);
        Ok(made)
    }

    /// A new root with name constraints.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn limited_root(name: &str, limits: &Limits<'_>) -> anyhow::Result<Self> {
        let mut params = authority(name);
        params.custom_extensions.extend(limits.extension());
        Self::self_signed(params)
    }

    /// A new intermediate under this one, with name constraints.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn limited(&self, name: &str, limits: &Limits<'_>) -> anyhow::Result<Self> {
        let mut params = authority(name);
        params.custom_extensions.extend(limits.extension());
        self.signed(params)
    }

    /// The intermediates of a leaf's chain, PEM; empty when this is a root.
    #[must_use]
    pub fn intermediates_pem(&self) -> String {
        self.intermediates.clone()
    }

    /// A list that revokes these certificates of this CA, each given as PEM (the first certificate of a text counts).
    ///
    /// # Errors
    /// When one of them does not parse.
    pub fn crl(&self, revoked: &[&str]) -> anyhow::Result<String> {
        let now = SystemTime::now();
        let entry = |pem: &&str| {
            let der = CertificateDer::from_pem_slice(pem.as_bytes()).context("certificate")?;
            let (_, parsed) = x509_parser::parse_x509_certificate(&der).context("certificate")?;
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from_slice(parsed.raw_serial()),
                revocation_time: now.into(),
                reason_code: None,
                invalidity_date: None,
            })
        };
        let params = CertificateRevocationListParams {
            this_update: (now - Duration::from_secs(60)).into(),
            next_update: (now + Duration::from_secs(60 * 60)).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect::<anyhow::Result<_>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.pem()?)
    }

    /// The root.
    #[must_use]
    pub fn root_pem(&self) -> String {
        self.root.clone()
    }

    /// A leaf of a workload, by its SPIFFE ID. The text is not checked, so that a test can make a defective leaf.
    ///
    /// # Errors
    /// When the text cannot be in a certificate.
    pub fn workload(&self, spiffe: &str) -> anyhow::Result<Leaf> {
        self.leaf(&Spec { uris: vec![spiffe.to_owned()], ..Spec::default() })
    }

    /// A leaf of a server, by its host names and addresses.
    ///
    /// # Errors
    /// When a name cannot be in a certificate.
    pub fn server(&self, names: &[&str]) -> anyhow::Result<Leaf> {
        self.leaf(&Spec { names: names.iter().map(|name| (*name).to_owned()).collect(), ..Spec::default() })
    }

    /// Any leaf.
    ///
    /// # Errors
    /// When a name cannot be in a certificate.
    pub fn leaf(&self, spec: &Spec) -> anyhow::Result<Leaf> {
        let mut params = CertificateParams::new(spec.names.clone())?;
        fill(&mut params, spec)?;
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?.pem() + &self.intermediates;
        Ok(Leaf { cert, key: key.serialize_pem(), root: self.root_pem() })
    }

    /// Signs a request as `spec` says; only the key is taken from it.
    ///
    /// # Errors
    /// When the request does not parse or its signature is wrong.
    pub fn sign(&self, csr_pem: &str, spec: &Spec) -> anyhow::Result<String> {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem)?;
        request.params = CertificateParams::new(spec.names.clone())?;
        fill(&mut request.params, spec)?;
        Ok(request.signed_by(&self.issuer)?.pem())
    }
}

// === impl Limits ===

impl Limits<'_> {
    /// The extension, DER (RFC 5280 §4.2.1.10); none without limits.
    fn extension(&self) -> Option<CustomExtension> {
        const OID: [u64; 4] = [2, 5, 29, 30];
        let (uri, dns, address) = (0x86, 0x82, 0x87);
        let subtree = |tag: u8, name: &[u8]| der(0x30, &der(tag, name));
        let all = |tag, texts: &[&str]| {
            texts.iter().flat_map(|text| subtree(tag, text.as_bytes())).collect::<Vec<u8>>()
        };
        let ranges = self.addresses.iter().flat_map(|range| subtree(address, range)).collect();
        let permitted = [all(uri, self.uris), all(dns, self.names), ranges].concat();
        let excluded = all(uri, self.excluded_uris);
        let some = |tag, subtrees: Vec<u8>| if subtrees.is_empty() { subtrees } else { der(tag, &subtrees) };
        let content = [some(0xa0, permitted), some(0xa1, excluded)].concat();
        let mut extension = CustomExtension::from_oid_content(&OID, der(0x30, &content));
        extension.set_criticality(true);
        (!content.is_empty()).then_some(extension)
    }
}

/// One DER element of up to 65535 bytes.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
    let length = match content.len() {
        0..128 => vec![low],
        128..256 => vec![0x81, low],
        _ => vec![0x82, high, low],
    };
    [vec![tag], length, content.to_vec()].concat()
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn fill(params: &mut CertificateParams, spec: &Spec) -> anyhow::Result<()> {
    params.distinguished_name = DistinguishedName::new();
    for uri in &spec.uris {
        params.subject_alt_names.push(SanType::URI(uri.as_str().try_into()?));
    }
    params.is_ca = match spec.authority {
        true => IsCa::Ca(rcgen::BasicConstraints::Unconstrained),
        false => IsCa::ExplicitNoCa,
    };
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages.clone_from(&spec.usages);
    params.not_before = spec.not_before.into();
    params.not_after = spec.not_after.into();
    Ok(())
}

// === impl Leaf ===

impl Leaf {
    /// A TLS 1.3 server with this leaf. It asks for a client certificate of the same root when `mutual`.
    ///
    /// # Errors
    /// When the leaf is no certificate.
    pub fn server_config(&self, mutual: bool, alpn: &[&str]) -> anyhow::Result<Arc<ServerConfig>> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?;
        let builder = if mutual {
            let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?, provider).build()?;
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_single_cert(self.chain()?, self.private_key()?)?;
        config.alpn_protocols = protocols(alpn);
        Ok(Arc::new(config))
    }

    /// A TLS 1.3 client with this leaf, which trusts its root, by host name.
    ///
    /// # Errors
    /// When the leaf is no certificate.
    pub fn client_config(&self, alpn: &[&str]) -> anyhow::Result<Arc<ClientConfig>> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.chain()?, self.private_key()?)?;
        config.alpn_protocols = protocols(alpn);
        Ok(Arc::new(config))
    }

    fn roots(&self) -> anyhow::Result<Arc<RootCertStore>> {
        roots(&self.root)
    }

    pub(crate) fn chain(&self) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        CertificateDer::pem_slice_iter(self.cert.as_bytes()).collect::<Result<_, _>>().context("leaf")
    }

    pub(crate) fn private_key(&self) -> anyhow::Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).context("key")
    }
}

/// A store with the one root that a PEM text holds.
///
/// # Errors
/// When it holds none.
pub fn roots(pem: &str) -> anyhow::Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).context("root")?)?;
    Ok(Arc::new(roots))
}

/// The first bytes that a TLS client sends to a server of this name.
///
/// # Errors
/// When it is no host name.
pub fn client_hello(name: &str) -> anyhow::Result<Vec<u8>> {
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name.to_owned().try_into()?)?;
    let mut hello = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut hello)?;
    }
    Ok(hello)
}

fn protocols(alpn: &[&str]) -> Vec<Vec<u8>> {
    alpn.iter().map(|name| name.as_bytes().to_vec()).collect()
}
