//! What every peer is judged by beside the certificate of ours that it meets: names of the mesh's trust domain, roots and
//! whom they may speak for, revocations. One per process; what the operator changes is in force from the next handshake
//! on, and revocations also for connections that are open.
//!
//! A root speaks for some trust domains and for no others:
//!
//! * those that came with a certificate of ours are the mesh's: they speak for its trust domain, for its aliases, and for
//!   every other domain that no configured root claims;
//! * a configured root speaks for the domains it was configured for, without any for the mesh's and its aliases.
//!
//! Roots of the mesh overlap when they change: one that came with any certificate is trusted until the last certificate
//! that it came with would have expired, so that peers which were signed before and after a rotation can meet.

pub mod crl;
mod live;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use isthmus_model::{SpiffeId, TrustDomain, TrustDomains};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};

use crate::provider::KeyExchange;
use crl::Revocations;
pub(crate) use live::Peer;
pub use live::{PeerRole, Vouched};

/// Settings that do not change.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// How keys are agreed on.
    pub key_exchange: KeyExchange,
    /// Whether revocation lists are to be expected. Then nobody is trusted before [`Trust::set_revocations`] was called,
    /// and open connections are kept track of.
    pub revocable: bool,
}

/// What peers are judged by. Clones share it.
#[derive(Clone)]
pub struct Trust(Arc<Shared>);

struct Shared {
    options: Options,
    rules: ArcSwap<Rules>,
    /// Held while the rules are replaced.
    writer: Mutex<()>,
    live: live::Live,
}

/// The rules of one moment.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) domains: TrustDomains,
    pub(crate) revocations: Arc<Revocations>,
    configured: Arc<[BoundRoot]>,
    mesh: Arc<[MeshRoot]>,
}

/// A root that the operator configured, and whom it may speak for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundRoot {
    anchor: TrustAnchor<'static>,
    /// Empty: the mesh's own trust domain and its aliases.
    domains: Vec<TrustDomain>,
}

/// A text that holds no usable root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it holds no usable root certificate: {0}")]
pub struct NoRoot(String);

/// A root that came with a certificate of ours.
#[derive(Debug, Clone)]
struct MeshRoot {
    anchor: TrustAnchor<'static>,
    until: UnixTime,
}

// === impl BoundRoot ===

impl BoundRoot {
    /// The roots of a PEM text, all for these domains.
    ///
    /// # Errors
    /// When there is none, or one does not parse.
    pub fn from_pem(pem: &str, domains: &[TrustDomain]) -> Result<Vec<Self>, NoRoot> {
        let mut store = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|error| NoRoot(error.to_string()))?;
            store.add(certificate).map_err(|error| NoRoot(error.to_string()))?;
        }
        if store.is_empty() {
            return Err(NoRoot("no PEM certificate in it".to_owned()));
        }
        let bind = |anchor| Self { anchor, domains: domains.to_vec() };
        Ok(store.roots.into_iter().map(bind).collect())
    }
}

// === impl Trust ===

impl Trust {
    /// No aliases, no configured roots; no revocations, unless they are to be expected.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let revocations = if options.revocable {
            Revocations::Unknown("it was not read yet".to_owned())
        } else {
            Revocations::None
        };
        let rules = Rules {
            domains: TrustDomains::default(),
            revocations: Arc::new(revocations),
            configured: Arc::default(),
            mesh: Arc::default(),
        };
        Self(Arc::new(Shared {
            options,
            rules: ArcSwap::from_pointee(rules),
            writer: Mutex::default(),
            live: live::Live::default(),
        }))
    }

    /// How keys are agreed on.
    #[must_use]
    pub fn key_exchange(&self) -> KeyExchange {
        self.0.options.key_exchange
    }

    /// Whether revocation lists are to be expected.
    #[must_use]
    pub fn is_revocable(&self) -> bool {
        self.0.options.revocable
    }

    /// Replaces the names of the mesh's trust domain and the configured roots.
    pub fn set_domains(&self, domains: TrustDomains, roots: Vec<BoundRoot>) {
        self.replace(|rules| Rules { domains, configured: roots.into(), ..rules });
    }

    /// Replaces the revocations, then ends the open connections whose peers they name. Answers how many those are.
    pub fn set_revocations(&self, revocations: Revocations) -> usize {
        let revocations = Arc::new(revocations);
        self.replace(|rules| Rules { revocations, ..rules });
        self.0.live.recheck(&self.rules())
    }

    /// The names of the mesh's trust domain as they are now.
    #[must_use]
    pub fn domains(&self) -> TrustDomains {
        self.0.rules.load().domains.clone()
    }

    /// Who is revoked now.
    #[must_use]
    pub fn revocations(&self) -> Arc<Revocations> {
        Arc::clone(&self.0.rules.load().revocations)
    }

    /// Takes note of the roots that came with a certificate which expires at `expires`.
    pub(crate) fn learn(&self, roots: &RootCertStore, expires: SystemTime, now: SystemTime) {
        let (until, now) = (unix(expires), unix(now));
        self.replace(|rules| {
            let mut mesh: Vec<MeshRoot> =
                rules.mesh.iter().filter(|root| root.until > now).cloned().collect();
            for anchor in &roots.roots {
                match mesh.iter_mut().find(|known| known.anchor == *anchor) {
                    Some(known) => known.until = known.until.max(until),
                    None => mesh.push(MeshRoot { anchor: anchor.clone(), until }),
                }
            }
            Rules { mesh: mesh.into(), ..rules }
        });
    }

    pub(crate) fn rules(&self) -> Arc<Rules> {
        self.0.rules.load_full()
    }

    /// Keeps track of a peer that was let in, until the answer is dropped.
    pub(crate) fn vouch(&self, peer: Peer) -> Vouched {
        // In the register first and looked at after, so that no list falls between the two.
        let vouched = Vouched::enter(self.clone(), peer);
        self.0.live.recheck_one(&vouched, &self.rules());
        vouched
    }

    fn live(&self) -> &live::Live {
        &self.0.live
    }

    fn replace(&self, change: impl FnOnce(Rules) -> Rules) {
        // A panic in here leaves the rules as they were.
        let _one_at_a_time = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let next = change(Rules::clone(&self.0.rules.load()));
        self.0.rules.store(Arc::new(next));
    }
}

impl Default for Trust {
    fn default() -> Self {
        Self::new(Options::default())
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("options", &self.0.options).finish_non_exhaustive()
    }
}

// === impl Rules ===

impl Rules {
    /// The roots that may speak for all of `ids`, seen from `own`; `ours` came with the certificate of ours that is used.
    pub(crate) fn anchors(
        &self,
        own: &TrustDomain,
        ours: &RootCertStore,
        ids: &[SpiffeId],
        now: UnixTime,
    ) -> Vec<TrustAnchor<'static>> {
        let mut anchors = Vec::new();
        let meshs =
            |id: &SpiffeId| self.domains.same(own, &id.trust_domain) || !self.is_claimed(&id.trust_domain);
        if ids.iter().all(meshs) {
            anchors.extend(ours.roots.iter().cloned());
            let overlapping = self.mesh.iter().filter(|root| root.until > now).map(|root| &root.anchor);
            anchors.extend(overlapping.filter(|anchor| !ours.roots.contains(anchor)).cloned());
        }
        let speaks = |root: &&BoundRoot| {
            !ids.is_empty() && ids.iter().all(|id| self.speaks_for(root, own, &id.trust_domain))
        };
        anchors.extend(self.configured.iter().filter(speaks).map(|root| root.anchor.clone()));
        anchors
    }

    /// Every root there is, whoever it speaks for.
    pub(crate) fn all_anchors(&self, ours: &RootCertStore) -> Vec<TrustAnchor<'static>> {
        let known = self.mesh.iter().map(|root| &root.anchor);
        let known = known.chain(self.configured.iter().map(|root| &root.anchor));
        ours.roots.iter().chain(known).cloned().collect()
    }

    fn speaks_for(&self, root: &BoundRoot, own: &TrustDomain, domain: &TrustDomain) -> bool {
        root.domains.contains(domain) || (root.domains.is_empty() && self.domains.same(own, domain))
    }

    fn is_claimed(&self, domain: &TrustDomain) -> bool {
        self.configured.iter().any(|root| root.domains.contains(domain))
    }
}

fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests;
