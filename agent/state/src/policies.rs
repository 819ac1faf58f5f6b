//! Policies by key, and by what they apply to. Applying them is [`crate::authorize`]'s.

use std::collections::BTreeMap;
use std::sync::Arc;

use isthmus_model::{Namespace, Policy, PolicyKey, Scope, Workload};

use crate::index::Map;

type Group = Arc<BTreeMap<PolicyKey, Arc<Policy>>>;

/// The store and its indices, which always agree.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policies {
    by_key: Map<PolicyKey, Arc<Policy>>,
    by_namespace: Map<Namespace, Group>,
    global: Group,
}

/// A policy that applies to a workload, or should.
#[derive(Clone, Copy, Debug)]
pub struct Applicable<'a> {
    /// Its key.
    pub key: &'a PolicyKey,
    /// The policy; `None` when the workload names it but it has not arrived.
    pub policy: Option<&'a Arc<Policy>>,
}

impl Policies {
    pub(crate) fn get(&self, key: &PolicyKey) -> Option<&Arc<Policy>> {
        self.by_key.get(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&PolicyKey, &Arc<Policy>)> {
        self.by_key.iter()
    }

    /// Policies of the workload's namespace, global ones, and those that it names itself.
    pub(crate) fn of<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = Applicable<'a>> {
        let namespace = self.by_namespace.get(&workload.namespace).into_iter().flat_map(|group| group.iter());
        let found = namespace.chain(self.global.iter());
        let named = workload.authorization_policies.iter();
        found
            .map(|(key, policy)| Applicable { key, policy: Some(policy) })
            .chain(named.map(|key| Applicable { key, policy: self.by_key.get(key) }))
    }

    pub(crate) fn put(&mut self, key: PolicyKey, policy: Arc<Policy>) {
        self.take(&key);
        match policy.scope {
            Scope::Global => drop(Arc::make_mut(&mut self.global).insert(key.clone(), Arc::clone(&policy))),
            Scope::Namespace => {
                if !self.by_namespace.contains_key(&policy.namespace) {
                    self.by_namespace.insert_mut(policy.namespace.clone(), Group::default());
                }
                if let Some(group) = self.by_namespace.get_mut(&policy.namespace) {
                    Arc::make_mut(group).insert(key.clone(), Arc::clone(&policy));
                }
            }
            Scope::WorkloadSelector => {}
        }
        self.by_key.insert_mut(key, policy);
    }

    /// Removes a policy; whether there was one.
    pub(crate) fn take(&mut self, key: &PolicyKey) -> bool {
        let Some(policy) = self.by_key.get(key).cloned() else { return false };
        self.by_key.remove_mut(key);
        match policy.scope {
            Scope::Global => drop(Arc::make_mut(&mut self.global).remove(key)),
            Scope::Namespace => {
                let Some(group) = self.by_namespace.get_mut(&policy.namespace) else { return true };
                Arc::make_mut(group).remove(key);
                if group.is_empty() {
                    self.by_namespace.remove_mut(&policy.namespace);
                }
            }
            Scope::WorkloadSelector => {}
        }
        true
    }
}
