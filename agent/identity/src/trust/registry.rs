//! The peers of open connections, to be checked again when the revocation lists change.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::rules::Rules;
use crate::path::{self, PeerRole};

/// What a peer presented, and what it was admitted by.
pub(crate) struct AdmittedPeer {
    /// Leaf first.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) role: PeerRole,
    /// Roots that came with our own certificate of that handshake.
    pub(crate) roots: Arc<RootCertStore>,
    /// Re-checks are as of this time: a connection may outlive its certificates, and expiry alone does not close it.
    pub(crate) verified_at: UnixTime,
}

/// The registered peers. Clones share them.
#[derive(Clone, Default)]
pub(super) struct PeerRegistry(Arc<Mutex<PeerTable>>);

#[derive(Default)]
struct PeerTable {
    next_id: u64,
    peers: HashMap<u64, Arc<PeerEntry>>,
}

struct PeerEntry {
    peer: AdmittedPeer,
    revoked: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

/// Reports when the peer of an open connection is revoked. The default watches no peer and never reports.
#[derive(Default)]
pub struct RevocationWatch(Option<Registration>);

struct Registration {
    id: u64,
    entry: Arc<PeerEntry>,
    registry: PeerRegistry,
}

// === impl PeerRegistry ===

impl PeerRegistry {
    /// Registers a peer until the watch is dropped.
    pub(super) fn register(&self, peer: AdmittedPeer) -> RevocationWatch {
        let entry = Arc::new(PeerEntry { peer, revoked: AtomicBool::new(false), waker: Mutex::default() });
        let id = {
            let mut table = self.lock();
            table.next_id += 1;
            let id = table.next_id;
            table.peers.insert(id, Arc::clone(&entry));
            id
        };
        RevocationWatch(Some(Registration { id, entry, registry: self.clone() }))
    }

    /// Checks every peer; returns how many this check revoked.
    pub(super) fn recheck(&self, rules: &Rules) -> usize {
        // The lock is not held during verification: new handshakes register meanwhile.
        let entries: Vec<Arc<PeerEntry>> = self.lock().peers.values().map(Arc::clone).collect();
        entries.iter().filter(|entry| entry.recheck(rules)).count()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().peers.len()
    }

    fn lock(&self) -> MutexGuard<'_, PeerTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl PeerEntry ===

impl PeerEntry {
    /// Whether this check revoked the peer.
    fn recheck(&self, rules: &Rules) -> bool {
        // Most peers are on no list, and looking up a serial number needs no signature verification.
        let listed = self.peer.chain.iter().any(|certificate| rules.revocations.mentions(certificate));
        if !listed || self.peer.is_accepted_by(rules) {
            return false;
        }
        let first = !self.revoked.swap(true, Ordering::AcqRel);
        if let Some(waker) = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take() {
            waker.wake();
        }
        first
    }
}

// === impl AdmittedPeer ===

impl AdmittedPeer {
    /// Whether the peer would be admitted with the revocations of `rules`, as of the time of its handshake.
    fn is_accepted_by(&self, rules: &Rules) -> bool {
        let Some((leaf, intermediates)) = self.chain.split_first() else { return false };
        let anchors = rules.all_anchors(&self.roots);
        path::verify(leaf, intermediates, &anchors, self.verified_at, self.role, &rules.revocations).is_ok()
    }
}

// === impl RevocationWatch ===

impl RevocationWatch {
    /// Whether a peer is registered at all.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        self.0.is_some()
    }

    /// Whether the peer was revoked.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.0.as_ref().is_some_and(|registration| registration.entry.revoked.load(Ordering::Acquire))
    }

    /// Ready once the peer is revoked. Only the task that polled last is woken.
    pub fn poll_revoked(&self, cx: &Context<'_>) -> Poll<()> {
        let Some(Registration { entry, .. }) = &self.0 else { return Poll::Pending };
        if !entry.revoked.load(Ordering::Acquire) {
            let mut waker = entry.waker.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *waker {
                Some(known) => known.clone_from(cx.waker()),
                unknown => *unknown = Some(cx.waker().clone()),
            }
        }
        // Checked again after the waker is stored: `recheck` sets the flag first and wakes after.
        if entry.revoked.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }

    pub(super) fn recheck(&self, rules: &Rules) {
        if let Some(registration) = &self.0 {
            registration.entry.recheck(rules);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.lock().peers.remove(&self.id);
    }
}

impl fmt::Debug for RevocationWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RevocationWatch")
            .field("registered", &self.is_registered())
            .field("revoked", &self.is_revoked())
            .finish()
    }
}
