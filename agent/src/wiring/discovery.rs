//! Applies xDS pushes to the state, and prefetches certificates for the identities of this node's pods.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use isthmus_control::xds::Sink;
use isthmus_identity::Manager;
use isthmus_model::{NodeName, Policy, PolicyKey, Protocol, RefusedPolicy, Resource, SpiffeId, Workload};
use isthmus_state::{Applied, Batch, State};

/// Receiver of xDS pushes.
pub(crate) struct Discovery {
    state: State,
    node: NodeName,
    prefetch: Option<Prefetch>,
}

/// Keeps the certificate manager's identities equal to those of this node's workloads.
struct Prefetch {
    manager: Manager,
    held: Mutex<BTreeSet<SpiffeId>>,
}

impl Discovery {
    /// `manager` is `None` for the gateway, which has only its own identity.
    pub(crate) fn new(state: State, node: NodeName, manager: Option<Manager>) -> Self {
        let prefetch = manager.map(|manager| Prefetch { manager, held: Mutex::default() });
        Self { state, node, prefetch }
    }

    /// Applies a batch, which may come from the static configuration.
    pub(crate) fn apply(&self, batch: Batch) -> Applied {
        let applied = self.state.apply(batch);
        if let Some(prefetch) = self.prefetch.as_ref().filter(|_| applied.own_node) {
            prefetch.follow(self.identities());
        }
        applied
    }

    /// Identities of this node's meshed workloads. None without a node name: every workload counts as local then, and
    /// prefetching a certificate for each would flood the CA.
    fn identities(&self) -> BTreeSet<SpiffeId> {
        let snapshot = self.state.load();
        let meshed = |w: &&std::sync::Arc<Workload>| w.protocol == Protocol::Hbone || w.native_tunnel;
        if self.node.is_empty() {
            return BTreeSet::new();
        }
        snapshot.on_node(&self.node).filter(meshed).map(|workload| workload.identity()).collect()
    }
}

impl Prefetch {
    fn follow(&self, wanted: BTreeSet<SpiffeId>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.difference(&held).for_each(|id| self.manager.prefetch(id));
        held.difference(&wanted).for_each(|id| self.manager.forget(id));
        *held = wanted;
    }
}

impl Sink for Discovery {
    fn addresses(&self, upserts: Vec<Resource>, removed: Vec<String>) {
        let mut batch = Batch { remove_addresses: removed, ..Batch::default() };
        for resource in upserts {
            match resource {
                Resource::Workload(workload) => batch.upsert_workloads.push(workload),
                Resource::Service(service) => batch.upsert_services.push(service),
            }
        }
        self.apply(batch);
    }

    fn policies(
        &self,
        upserts: Vec<(PolicyKey, Policy)>,
        removed: Vec<PolicyKey>,
        refused: Vec<RefusedPolicy>,
    ) {
        self.apply(Batch {
            upsert_policies: upserts,
            refused_policies: refused,
            remove_policies: removed,
            ..Batch::default()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_model::Facts;
    use isthmus_state::{Options, authorize};

    #[test]
    fn a_refused_policy_denies_its_namespace_until_it_is_removed() {
        let state = State::new(Options { root_namespace: "istio-system".into(), ..Options::default() });
        let discovery = Discovery::new(state.clone(), NodeName::default(), None);
        let pod = Workload { namespace: "shop".into(), ..Workload::default() };
        let facts =
            Facts { peer: None, source: [10, 0, 0, 1].into(), destination: ([10, 0, 0, 2], 80).into() };
        let allowed = || authorize(&state.load(), &pod, &facts).is_ok();
        assert!(allowed());
        let odd = RefusedPolicy { key: "shop/odd".into(), outline: None };
        discovery.policies(Vec::new(), Vec::new(), vec![odd]);
        assert!(!allowed());
        discovery.policies(Vec::new(), vec!["shop/odd".into()], Vec::new());
        assert!(allowed());
    }
}
