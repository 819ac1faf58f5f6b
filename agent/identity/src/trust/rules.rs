//! Which roots are authorized for which identities. Pure.
//!
//! A root is authorized for some trust domains only:
//!
//! * roots that came with a certificate of ours belong to the mesh: its trust domain, its aliases, and every other
//!   domain that no configured root claims;
//! * a configured root (`caCertificates`) is authorized for the domains it was configured with; without any, for the
//!   mesh's trust domain and its aliases.
//!
//! Roots of the mesh overlap during a rotation: one is trusted until the last certificate of ours that it came with would
//! have expired, so that peers that were signed before and after the rotation accept each other.

use std::sync::Arc;

use isthmus_model::{SpiffeId, TrustDomain, TrustDomains};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};

use crate::crl::Revocations;

/// The trust rules at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) domains: TrustDomains,
    pub(crate) revocations: Arc<Revocations>,
    configured: Arc<[BoundRoot]>,
    mesh: Arc<[MeshRoot]>,
}

/// A root that the operator configured, with the trust domains it is authorized for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundRoot {
    anchor: TrustAnchor<'static>,
    /// Empty: the mesh's own trust domain and its aliases.
    domains: Vec<TrustDomain>,
}

/// A PEM text without a usable root certificate.
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
    /// Reads the roots of a PEM text, all authorized for `domains`.
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
            return Err(NoRoot("no PEM certificate".to_owned()));
        }
        let bind = |anchor| Self { anchor, domains: domains.to_vec() };
        Ok(store.roots.into_iter().map(bind).collect())
    }
}

// === impl Rules ===

impl Rules {
    /// No aliases and no roots.
    pub(super) fn new(revocations: Revocations) -> Self {
        Self {
            domains: TrustDomains::default(),
            revocations: Arc::new(revocations),
            configured: Arc::default(),
            mesh: Arc::default(),
        }
    }

    pub(super) fn with_domains(self, domains: TrustDomains, configured: Vec<BoundRoot>) -> Self {
        Self { domains, configured: configured.into(), ..self }
    }

    pub(super) fn with_revocations(self, revocations: Revocations) -> Self {
        Self { revocations: Arc::new(revocations), ..self }
    }

    /// Adds roots of the mesh that are trusted until `until`, and drops those whose time has passed at `now`.
    pub(super) fn with_mesh_roots(self, roots: &RootCertStore, until: UnixTime, now: UnixTime) -> Self {
        let mut mesh: Vec<MeshRoot> = self.mesh.iter().filter(|root| root.until > now).cloned().collect();
        for anchor in &roots.roots {
            match mesh.iter_mut().find(|known| known.anchor == *anchor) {
                Some(known) => known.until = known.until.max(until),
                None => mesh.push(MeshRoot { anchor: anchor.clone(), until }),
            }
        }
        Self { mesh: mesh.into(), ..self }
    }

    /// The roots that are authorized for all of `ids`, for a workload in trust domain `own` whose certificate came with
    /// the roots `ours`.
    pub(crate) fn anchors(
        &self,
        own: &TrustDomain,
        ours: &RootCertStore,
        ids: &[SpiffeId],
        now: UnixTime,
    ) -> Vec<TrustAnchor<'static>> {
        let mut anchors = Vec::new();
        let is_mesh =
            |id: &SpiffeId| self.domains.same(own, &id.trust_domain) || !self.is_claimed(&id.trust_domain);
        if ids.iter().all(is_mesh) {
            anchors.extend(ours.roots.iter().cloned());
            let overlapping = self.mesh.iter().filter(|root| root.until > now).map(|root| &root.anchor);
            anchors.extend(overlapping.filter(|anchor| !ours.roots.contains(anchor)).cloned());
        }
        let is_authorized = |root: &&BoundRoot| {
            !ids.is_empty() && ids.iter().all(|id| self.is_authorized(root, own, &id.trust_domain))
        };
        anchors.extend(self.configured.iter().filter(is_authorized).map(|root| root.anchor.clone()));
        anchors
    }

    /// Every known root, whatever it is authorized for.
    pub(crate) fn all_anchors(&self, ours: &RootCertStore) -> Vec<TrustAnchor<'static>> {
        let known = self.mesh.iter().map(|root| &root.anchor);
        let known = known.chain(self.configured.iter().map(|root| &root.anchor));
        ours.roots.iter().chain(known).cloned().collect()
    }

    #[cfg(test)]
    pub(super) fn mesh_roots(&self) -> usize {
        self.mesh.len()
    }

    fn is_authorized(&self, root: &BoundRoot, own: &TrustDomain, domain: &TrustDomain) -> bool {
        root.domains.contains(domain) || (root.domains.is_empty() && self.domains.same(own, domain))
    }

    fn is_claimed(&self, domain: &TrustDomain) -> bool {
        self.configured.iter().any(|root| root.domains.contains(domain))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use isthmus_kit::pki::{Ca, roots};

    use super::*;

    #[test]
    fn a_root_of_the_mesh_is_trusted_until_its_time_and_not_at_it() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let (old, new) = (Ca::new("old").unwrap(), Ca::new("new").unwrap());
        let [old, new] = [old, new].map(|ca| roots(&ca.root_pem()).unwrap());
        let id = "spiffe://td/ns/n/sa/a".parse().unwrap();
        let rules = Rules::new(Revocations::None).with_mesh_roots(&old, at(100), at(50));
        for (now, trusted) in [(99, 2), (100, 1), (101, 1)] {
            let anchors = rules.anchors(&"td".into(), &new, std::slice::from_ref(&id), at(now));
            assert_eq!(anchors.len(), trusted, "at {now}");
            assert_eq!(anchors[0], new.roots[0]);
            let kept = rules.clone().with_mesh_roots(&new, at(200), at(now)).mesh_roots();
            assert_eq!(kept, trusted, "at {now}");
        }
        // The same root with a later certificate: one root, for the longer of the two times.
        for (first, second) in [(100, 200), (200, 100)] {
            let rules = Rules::new(Revocations::None).with_mesh_roots(&old, at(first), at(50));
            let rules = rules.with_mesh_roots(&old, at(second), at(50));
            assert_eq!(rules.mesh_roots(), 1);
            assert_eq!(rules.anchors(&"td".into(), &new, std::slice::from_ref(&id), at(150)).len(), 2);
        }
    }
}
