//! Which workloads and services labels may name because the mesh has them.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use isthmus_model::NamespacedHostname;
use isthmus_state::Snapshot;

use super::labels::{Labels, Party};

/// The mesh as labels see it.
pub(super) struct LiveLabels<'a> {
    mesh: &'a Snapshot,
    hasher: RandomState,
    /// Hashes of what tells workloads apart in labels; made when first asked for.
    parties: Option<HashSet<u64>>,
    /// Hostnames of workloads that are known by those; likewise.
    names: Option<HashSet<&'a str>>,
}

impl<'a> LiveLabels<'a> {
    pub(super) fn of(mesh: &'a Snapshot) -> Self {
        Self { mesh, hasher: RandomState::new(), parties: None, names: None }
    }

    /// Whether the labels name something that the mesh does not have.
    pub(super) fn lacks(&mut self, labels: &Labels) -> bool {
        self.lacks_party(&labels.source)
            || self.lacks_party(&labels.destination)
            || self.lacks_service(labels)
    }

    /// Whether no workload is known by this name.
    pub(super) fn lacks_name(&mut self, name: &str) -> bool {
        let all = || self.mesh.workloads().map(|workload| workload.hostname.as_str()).collect();
        !self.names.get_or_insert_with(all).contains(name)
    }

    fn lacks_party(&mut self, party: &Party) -> bool {
        if !party.known {
            // Somebody who only proved a name is nobody of the mesh; who has none is the world outside, which stays.
            return party.principal.is_some();
        }
        let Self { mesh, hasher, parties, .. } = self;
        let all = || mesh.workloads().map(|workload| key(hasher, &Party::of(workload))).collect();
        !parties.get_or_insert_with(all).contains(&key(hasher, party))
    }

    fn lacks_service(&self, labels: &Labels) -> bool {
        let service = &labels.service;
        let key =
            NamespacedHostname { namespace: service.namespace.clone(), hostname: service.hostname.clone() };
        !service.hostname.is_empty() && self.mesh.service(&key).is_none()
    }
}

fn key(hasher: &RandomState, party: &Party) -> u64 {
    let Party { workload, canonical_service, canonical_revision, namespace, cluster, .. } = party;
    hasher.hash_one((workload, canonical_service, canonical_revision, namespace, cluster))
}
