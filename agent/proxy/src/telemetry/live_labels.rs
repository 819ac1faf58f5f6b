//! Whether the workloads and services that labels name are still in the mesh, to expire metric series of those that are
//! not.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use isthmus_model::NamespacedHostname;
use isthmus_state::Snapshot;

use super::labels::{Labels, Party};

/// Labels of the workloads and services of a snapshot.
pub(super) struct LiveLabels<'a> {
    snapshot: &'a Snapshot,
    hasher: RandomState,
    /// Hashes of the labels that identify a workload; computed on first use.
    parties: Option<HashSet<u64>>,
    /// Hostnames of workloads; computed on first use.
    hostnames: Option<HashSet<&'a str>>,
}

impl<'a> LiveLabels<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        Self { snapshot, hasher: RandomState::new(), parties: None, hostnames: None }
    }

    /// Whether the mesh has everything that the labels name.
    pub(super) fn contains(&mut self, labels: &Labels) -> bool {
        self.has_party(&labels.source) && self.has_party(&labels.destination) && self.has_service(labels)
    }

    /// Whether a workload has this hostname.
    pub(super) fn has_hostname(&mut self, hostname: &str) -> bool {
        let all = || self.snapshot.workloads().map(|workload| workload.hostname.as_str()).collect();
        self.hostnames.get_or_insert_with(all).contains(hostname)
    }

    fn has_party(&mut self, party: &Party) -> bool {
        if !party.known {
            // Traffic outside of the mesh has one series, which never expires. An identity without a workload is a
            // peer that left the mesh or was never in it.
            return party.principal.is_none();
        }
        let Self { snapshot, hasher, parties, .. } = self;
        let all = || snapshot.workloads().map(|workload| hash(hasher, &Party::of(workload))).collect();
        parties.get_or_insert_with(all).contains(&hash(hasher, party))
    }

    fn has_service(&self, labels: &Labels) -> bool {
        let service = &labels.service;
        let key =
            NamespacedHostname { namespace: service.namespace.clone(), hostname: service.hostname.clone() };
        service.hostname.is_empty() || self.snapshot.service(&key).is_some()
    }
}

fn hash(hasher: &RandomState, party: &Party) -> u64 {
    let Party { workload, canonical_service, canonical_revision, namespace, cluster, .. } = party;
    hasher.hash_one((workload, canonical_service, canonical_revision, namespace, cluster))
}
