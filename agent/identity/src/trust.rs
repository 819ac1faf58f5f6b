//! The trust rules of the process: names of the mesh's trust domain, roots with the trust domains they are authorized
//! for, and revocation lists. One per process. Changes apply from the next handshake on; revocations also close open
//! connections.
//!
//! `rules` decides which roots are authorized for an identity, `registry` keeps the peers of open connections.

mod registry;
mod rules;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use isthmus_model::TrustDomains;
use rustls::RootCertStore;
use rustls_pki_types::UnixTime;

use self::registry::PeerRegistry;
use crate::crl::Revocations;
use crate::provider::KeyExchange;

pub(crate) use self::registry::AdmittedPeer;
pub use self::registry::RevocationWatch;
pub(crate) use self::rules::Rules;
pub use self::rules::{BoundRoot, NoRoot};

/// Settings that are fixed for the life of the process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Key exchange groups.
    pub key_exchange: KeyExchange,
    /// Whether revocation lists are configured (`CRL_PATH`). Then no peer is accepted before the first call of
    /// [`Trust::set_revocations`], and the peers of open connections are registered.
    pub revocable: bool,
}

/// The trust rules in force. Clones share them.
#[derive(Clone)]
pub struct Trust(Arc<TrustState>);

struct TrustState {
    options: Options,
    rules: ArcSwap<Rules>,
    /// Held while the rules are replaced.
    writer: Mutex<()>,
    registry: PeerRegistry,
}

// === impl Trust ===

impl Trust {
    /// No aliases and no configured roots. Revocations are unknown if lists are configured, else there are none.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let revocations = if options.revocable {
            Revocations::Unknown("it was not read yet".to_owned())
        } else {
            Revocations::None
        };
        Self(Arc::new(TrustState {
            options,
            rules: ArcSwap::from_pointee(Rules::new(revocations)),
            writer: Mutex::default(),
            registry: PeerRegistry::default(),
        }))
    }

    /// Key exchange groups for handshakes.
    #[must_use]
    pub fn key_exchange(&self) -> KeyExchange {
        self.0.options.key_exchange
    }

    /// Whether revocation lists are configured.
    #[must_use]
    pub fn is_revocable(&self) -> bool {
        self.0.options.revocable
    }

    /// Replaces the names of the mesh's trust domain and the configured roots.
    pub fn set_domains(&self, domains: TrustDomains, roots: Vec<BoundRoot>) {
        self.replace(|rules| rules.with_domains(domains, roots));
    }

    /// Replaces the revocation lists and closes open connections whose peers are revoked by the new ones. Returns the
    /// number of peers that were revoked by this call.
    pub fn set_revocations(&self, revocations: Revocations) -> usize {
        self.replace(|rules| rules.with_revocations(revocations));
        self.0.registry.recheck(&self.rules())
    }

    /// The names of the mesh's trust domain.
    #[must_use]
    pub fn domains(&self) -> TrustDomains {
        self.0.rules.load().domains.clone()
    }

    /// The revocation lists in force.
    #[must_use]
    pub fn revocations(&self) -> Arc<Revocations> {
        Arc::clone(&self.0.rules.load().revocations)
    }

    /// Adds the roots that came with a certificate of ours which expires at `expires`.
    pub(crate) fn learn_roots(&self, roots: &RootCertStore, expires: SystemTime, now: SystemTime) {
        let (until, now) = (unix(expires), unix(now));
        self.replace(|rules| rules.with_mesh_roots(roots, until, now));
    }

    pub(crate) fn rules(&self) -> Arc<Rules> {
        self.0.rules.load_full()
    }

    /// Registers a peer that was admitted, until the watch is dropped.
    pub(crate) fn watch(&self, peer: AdmittedPeer) -> RevocationWatch {
        // Registered first and checked after, so that no list replaced in between is missed.
        let watch = self.0.registry.register(peer);
        watch.recheck(&self.rules());
        watch
    }

    fn replace(&self, change: impl FnOnce(Rules) -> Rules) {
        // A poisoned lock is fine: a panic in `change` leaves the rules as they were.
        let _writer = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner);
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

fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests;
