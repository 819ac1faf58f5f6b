//! The TLS of one connection: a rustls configuration with a verifier of its own, and what that verifier proved.
//!
//! The HBONE crate runs the handshake and knows nothing of identities: it gets the rustls configuration
//! ([`MeshTls::config`]) and gives back the session, which is turned into a [`PeerIdentity`] and a [`RevocationWatch`]
//! here.

use std::fmt;
use std::sync::Arc;

use isthmus_model::{SpiffeId, TrustDomain};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, CommonState, ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::crl::Revocations;
use crate::evidence::PeerEvidence;
use crate::path::{self, PeerRole};
use crate::peer::{PeerIdentity, PeerProof};
use crate::provider::{ALPN_H2, VERSIONS};
use crate::trust::{AdmittedPeer, RevocationWatch, Trust};
use crate::verify::PeerVerifier;

/// TLS for dialling a peer; see [`Certificate::client_tls`](crate::Certificate::client_tls).
pub type ClientTls = MeshTls<ClientConfig>;
/// TLS for accepting a peer; see [`Certificate::server_tls`](crate::Certificate::server_tls).
pub type ServerTls = MeshTls<ServerConfig>;

/// The configuration of one handshake, and the result of its verifier.
pub struct MeshTls<C> {
    config: Arc<C>,
    proof: Arc<PeerProof>,
    role: PeerRole,
    roots: Arc<RootCertStore>,
    trust: Trust,
}

/// What all configurations of one certificate have in common.
pub(crate) struct TlsTemplate {
    own: TrustDomain,
    roots: Arc<RootCertStore>,
    trust: Trust,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<SingleCertAndKey>,
    client: ConfigBuilder<ClientConfig, WantsVerifier>,
    server: ConfigBuilder<ServerConfig, WantsVerifier>,
}

// === impl MeshTls ===

impl<C> MeshTls<C> {
    /// The configuration to make this one handshake with.
    #[must_use]
    pub fn config(&self) -> Arc<C> {
        Arc::clone(&self.config)
    }

    /// The identity that the peer proved in the handshake of `session`. `None` while it runs, and for a session that was
    /// not made with this configuration.
    #[must_use]
    pub fn peer(&self, session: &CommonState) -> Option<PeerIdentity> {
        self.proof.identity(session)
    }

    /// Registers the peer of a finished handshake, so that its connection can be closed when it is revoked. Nothing is
    /// registered where no revocation list is configured.
    #[must_use]
    pub fn watch_revocation(&self, session: &CommonState) -> RevocationWatch {
        let chain = match session.peer_certificates() {
            Some(chain) if !session.is_handshaking() && self.trust.is_revocable() => chain,
            _ => return RevocationWatch::default(),
        };
        let chain = chain.iter().map(|der| der.clone().into_owned()).collect();
        let (role, roots) = (self.role, Arc::clone(&self.roots));
        self.trust.watch(AdmittedPeer { chain, role, roots, verified_at: UnixTime::now() })
    }

    /// What the peer of a finished handshake presented.
    #[must_use]
    pub fn evidence(&self, session: &CommonState) -> Option<PeerEvidence> {
        PeerEvidence::of(session, self.role)
    }

    /// Whether a revocation list is configured, so that peers are registered for re-checks.
    #[must_use]
    pub fn is_revocable(&self) -> bool {
        self.trust.is_revocable()
    }
}

impl<C> fmt::Debug for MeshTls<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshTls").field("peer_role", &self.role).finish_non_exhaustive()
    }
}

// === impl TlsTemplate ===

impl TlsTemplate {
    /// # Errors
    /// When the crypto provider has no suite for TLS 1.3.
    pub(crate) fn new(
        own: &TrustDomain,
        roots: Arc<RootCertStore>,
        trust: &Trust,
        key: CertifiedKey,
    ) -> Result<Self, rustls::Error> {
        let provider = trust.key_exchange().provider();
        Ok(Self {
            own: own.clone(),
            roots,
            trust: trust.clone(),
            chain: key.cert.clone(),
            key: Arc::new(SingleCertAndKey::from(key)),
            client: ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(VERSIONS)?,
            server: ServerConfig::builder_with_provider(provider).with_protocol_versions(VERSIONS)?,
        })
    }

    /// Verifies the certificate's own chain as a peer of this role's opposite does that trusts the same roots.
    ///
    /// # Errors
    /// Why such a peer refuses it.
    pub(crate) fn verify_own(&self, at: UnixTime, role: PeerRole) -> Result<(), webpki::Error> {
        let Some((leaf, rest)) = self.chain.split_first() else { return Err(webpki::Error::BadDer) };
        path::verify(leaf, rest, &self.roots.roots, at, role, &Revocations::None)
    }

    /// The roots that came with the certificate.
    pub(crate) fn roots(&self) -> &RootCertStore {
        &self.roots
    }

    pub(crate) fn client(&self, expected: &[SpiffeId]) -> ClientTls {
        let (verifier, proof) = self.verifier();
        let mut config = self
            .client
            .clone()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier.for_servers(expected)))
            .with_client_cert_resolver(Arc::<SingleCertAndKey>::clone(&self.key));
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.enable_sni = false;
        config.resumption = rustls::client::Resumption::disabled();
        self.tls(config, proof, PeerRole::Server)
    }

    pub(crate) fn server(&self) -> ServerTls {
        let (verifier, proof) = self.verifier();
        let mut config = self
            .server
            .clone()
            .with_client_cert_verifier(Arc::new(verifier.for_clients()))
            .with_cert_resolver(Arc::<SingleCertAndKey>::clone(&self.key));
        // rustls refuses only clients that offer protocols without h2 among them; those that offer none are accepted.
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        self.tls(config, proof, PeerRole::Client)
    }

    /// Verifies a peer as of the time of its handshake, under the rules that are in force now.
    pub(crate) fn readmit(
        &self,
        evidence: &PeerEvidence,
        expected: &[SpiffeId],
    ) -> Result<(PeerIdentity, RevocationWatch), rustls::Error> {
        let PeerEvidence { chain, role, verified_at } = evidence.clone();
        let none = || rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding);
        let (leaf, intermediates) = chain.split_first().ok_or_else(none)?;
        let (verifier, proof) = self.verifier();
        match role {
            PeerRole::Client => verifier.for_clients().accept(leaf, intermediates, verified_at)?,
            PeerRole::Server => verifier.for_servers(expected).accept(leaf, intermediates, verified_at)?,
        }
        let identity = proof.handed_over().ok_or_else(none)?;
        let watch = if self.trust.is_revocable() {
            let roots = Arc::clone(&self.roots);
            self.trust.watch(AdmittedPeer { chain, role, roots, verified_at })
        } else {
            RevocationWatch::default()
        };
        Ok((identity, watch))
    }

    fn verifier(&self) -> (PeerVerifier, Arc<PeerProof>) {
        let proof = Arc::<PeerProof>::default();
        let verifier = PeerVerifier::new(&self.own, Arc::clone(&self.roots), &self.trust, Arc::clone(&proof));
        (verifier, proof)
    }

    fn tls<C>(&self, config: C, proof: Arc<PeerProof>, role: PeerRole) -> MeshTls<C> {
        let (roots, trust) = (Arc::clone(&self.roots), self.trust.clone());
        MeshTls { config: Arc::new(config), proof, role, roots, trust }
    }
}
