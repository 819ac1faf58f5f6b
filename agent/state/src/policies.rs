//! Policies by key, and by what they apply to. Evaluating them is the job of [`mod@crate::authorize`].

use std::collections::BTreeMap;
use std::sync::Arc;

use isthmus_model::{
    Namespace, Policy, PolicyKey, RefusedPolicy, Scope, TrustDomain, TrustDomains, Workload,
};

use crate::index::Map;

type PolicyMap = Arc<BTreeMap<PolicyKey, Arc<Policy>>>;

/// The store and its indices, which always agree.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policies {
    by_key: Map<PolicyKey, Arc<Policy>>,
    by_namespace: Map<Namespace, PolicyMap>,
    global: PolicyMap,
    /// Keys of policies that stand in for a rejected resource.
    stand_ins: Map<PolicyKey, ()>,
}

/// A policy that applies to a workload.
#[derive(Clone, Copy, Debug)]
pub struct ApplicablePolicy<'a> {
    /// Its key.
    pub key: &'a PolicyKey,
    /// The policy; `None` when the workload names it but it has not arrived.
    pub policy: Option<&'a Arc<Policy>>,
}

/// Everything that the verdict on connections to a workload depends on, in one snapshot. Two are equal when no verdict can
/// have changed between them; the comparison does not depend on the number of policies in the mesh.
#[derive(Clone, Debug)]
pub struct EffectivePolicies {
    namespace: Option<PolicyMap>,
    global: PolicyMap,
    named: Vec<(PolicyKey, Option<Arc<Policy>>)>,
    own: TrustDomain,
    trust_domains: Arc<TrustDomains>,
}

// === impl EffectivePolicies ===

impl PartialEq for EffectivePolicies {
    /// By pointer: a change never happens in place while this keeps the old value alive.
    fn eq(&self, other: &Self) -> bool {
        let same = |a: &Option<Arc<Policy>>, b: &Option<Arc<Policy>>| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        let namespaces = match (&self.namespace, &other.namespace) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        namespaces
            && Arc::ptr_eq(&self.global, &other.global)
            && self.named.len() == other.named.len()
            && self.named.iter().zip(&other.named).all(|((a, old), (b, new))| a == b && same(old, new))
            && self.own == other.own
            && self.trust_domains == other.trust_domains
    }
}

// === impl Policies ===

impl Policies {
    pub(crate) fn effective_policies(
        &self,
        workload: &Workload,
        trust_domains: &Arc<TrustDomains>,
    ) -> EffectivePolicies {
        let named = workload.authorization_policies.iter();
        EffectivePolicies {
            namespace: self.by_namespace.get(&workload.namespace).cloned(),
            global: Arc::clone(&self.global),
            named: named.map(|key| (key.clone(), self.by_key.get(key).cloned())).collect(),
            own: workload.trust_domain.clone(),
            trust_domains: Arc::clone(trust_domains),
        }
    }

    pub(crate) fn get(&self, key: &PolicyKey) -> Option<&Arc<Policy>> {
        self.by_key.get(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&PolicyKey, &Arc<Policy>)> {
        self.by_key.iter()
    }

    /// Policies of the workload's namespace, global ones, and those that the workload names itself.
    pub(crate) fn applying_to<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> impl Iterator<Item = ApplicablePolicy<'a>> {
        let namespace = self.by_namespace.get(&workload.namespace).into_iter().flat_map(|group| group.iter());
        let found = namespace.chain(self.global.iter());
        let named = workload.authorization_policies.iter();
        found
            .map(|(key, policy)| ApplicablePolicy { key, policy: Some(policy) })
            .chain(named.map(|key| ApplicablePolicy { key, policy: self.by_key.get(key) }))
    }

    /// Stores an accepted policy; whether that changes anything.
    pub(crate) fn accept(&mut self, key: PolicyKey, policy: Policy) -> bool {
        let stood_in = self.stand_ins.remove_mut(&key);
        let changed = self.by_key.get(&key).is_none_or(|stored| **stored != policy);
        if changed {
            self.insert(key, Arc::new(policy));
        }
        changed || stood_in
    }

    /// Records that a policy was rejected; whether that changes anything. An accepted version stays in force.
    pub(crate) fn refuse(&mut self, refused: &RefusedPolicy, root: Option<&Namespace>) -> bool {
        let key = &refused.key;
        let stored = self.by_key.get(key);
        if stored.is_some() && !self.stand_ins.contains_key(key) {
            return false;
        }
        let stand_in = refused.stand_in(self.root(refused, root));
        if stored.is_some_and(|stored| **stored == stand_in) {
            return false;
        }
        tracing::warn!(
            policy = %key, scope = ?stand_in.scope, action = ?stand_in.action,
            "policy rejected and no earlier version is known: a stand-in denies all connections that it may apply to, until the policy is corrected"
        );
        self.insert(key.clone(), Arc::new(stand_in));
        self.stand_ins.insert_mut(key.clone(), ());
        true
    }

    /// The root namespace for a rejected policy: the configured one, or the policy's own namespace if a global policy of it
    /// is known, which only the root namespace can have.
    fn root<'a>(
        &'a self,
        refused: &RefusedPolicy,
        configured: Option<&'a Namespace>,
    ) -> Option<&'a Namespace> {
        let (namespace, _) = refused.key.as_str().split_once('/')?;
        let seen = self.global.values().map(|policy| &policy.namespace);
        configured.into_iter().chain(seen).find(|root| root.as_str() == namespace).or(configured)
    }

    fn insert(&mut self, key: PolicyKey, policy: Arc<Policy>) {
        self.unlist(&key);
        match policy.scope {
            Scope::Global => drop(Arc::make_mut(&mut self.global).insert(key.clone(), Arc::clone(&policy))),
            Scope::Namespace => {
                if !self.by_namespace.contains_key(&policy.namespace) {
                    self.by_namespace.insert_mut(policy.namespace.clone(), PolicyMap::default());
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
    pub(crate) fn remove(&mut self, key: &PolicyKey) -> bool {
        self.stand_ins.remove_mut(key);
        self.unlist(key)
    }

    fn unlist(&mut self, key: &PolicyKey) -> bool {
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

#[cfg(test)]
mod tests;
