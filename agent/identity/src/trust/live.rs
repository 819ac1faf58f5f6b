//! The peers of open connections, to be looked at again when somebody is revoked.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{Rules, Trust};
use crate::verify;

/// Which side of a connection the peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRole {
    /// It dialled.
    Client,
    /// It was dialled.
    Server,
}

/// What a peer showed, and what it was let in by.
pub(crate) struct Peer {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) role: PeerRole,
    /// Roots of the certificate of ours that it met.
    pub(crate) roots: Arc<RootCertStore>,
    /// When. It is looked at again as of then: an open connection outlives its certificates.
    pub(crate) at: UnixTime,
}

/// The register.
#[derive(Default)]
pub(super) struct Live(Mutex<Table>);

#[derive(Default)]
struct Table {
    next: u64,
    peers: HashMap<u64, Arc<Entry>>,
}

struct Entry {
    peer: Peer,
    revoked: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

/// That the peer of an open connection was let in; says when it no longer would be. The default is never revoked.
#[derive(Default)]
pub struct Vouched(Option<Registered>);

struct Registered {
    id: u64,
    entry: Arc<Entry>,
    trust: Trust,
}

// === impl Live ===

impl Live {
    /// Looks at everybody; answers how many were let in and are revoked now.
    pub(super) fn recheck(&self, rules: &Rules) -> usize {
        // Nobody waits for the register while chains are verified.
        let entries: Vec<Arc<Entry>> = self.lock().peers.values().map(Arc::clone).collect();
        entries.iter().filter(|entry| entry.recheck(rules)).count()
    }

    pub(super) fn recheck_one(&self, vouched: &Vouched, rules: &Rules) {
        if let Some(registered) = &vouched.0 {
            registered.entry.recheck(rules);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Entry ===

impl Entry {
    /// Whether this look revoked it.
    fn recheck(&self, rules: &Rules) -> bool {
        // Most are mentioned by no list, and a mention costs no signature.
        let mentioned = self.peer.chain.iter().any(|certificate| rules.revocations.mentions(certificate));
        if !mentioned || verify::still_stands(&self.peer, rules) {
            return false;
        }
        let first = !self.revoked.swap(true, Ordering::AcqRel);
        if let Some(waker) = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take() {
            waker.wake();
        }
        first
    }
}

// === impl Vouched ===

impl Vouched {
    pub(super) fn enter(trust: Trust, peer: Peer) -> Self {
        let entry = Arc::new(Entry { peer, revoked: AtomicBool::new(false), waker: Mutex::default() });
        let id = {
            let mut table = trust.live().lock();
            table.next += 1;
            let id = table.next;
            table.peers.insert(id, Arc::clone(&entry));
            id
        };
        Self(Some(Registered { id, entry, trust }))
    }

    /// Whether the peer is kept track of at all.
    #[must_use]
    pub fn is_tracked(&self) -> bool {
        self.0.is_some()
    }

    /// Whether the peer was revoked.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.0.as_ref().is_some_and(|registered| registered.entry.revoked.load(Ordering::Acquire))
    }

    /// Ready once the peer was revoked; wakes the last task that asked.
    pub fn poll_revoked(&self, cx: &Context<'_>) -> Poll<()> {
        let Some(Registered { entry, .. }) = &self.0 else { return Poll::Pending };
        if !entry.revoked.load(Ordering::Acquire) {
            let mut waker = entry.waker.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *waker {
                Some(known) => known.clone_from(cx.waker()),
                unknown => *unknown = Some(cx.waker().clone()),
            }
        }
        // Looked at after the waker is there: whoever revokes sets the flag first and wakes after.
        if entry.revoked.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.trust.live().lock().peers.remove(&self.id);
    }
}

impl fmt::Debug for Vouched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vouched")
            .field("tracked", &self.is_tracked())
            .field("revoked", &self.is_revoked())
            .finish()
    }
}
