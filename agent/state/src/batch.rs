//! One push of the control plane, and how the next snapshot is made from it. The cost follows the change: a resource that
//! is equal to the stored one is not touched, and indices are changed in place in a copy that has no readers yet.

use std::sync::Arc;

use isthmus_model::{NamespacedHostname, Policy, PolicyKey, RefusedPolicy, Service, Workload};

use crate::snapshot::Snapshot;

/// A push. Removals are applied after everything else.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Workloads, new or changed.
    pub upsert_workloads: Vec<Workload>,
    /// Services, new or changed.
    pub upsert_services: Vec<Service>,
    /// Policies, new or changed, by the name of their resource.
    pub upsert_policies: Vec<(PolicyKey, Policy)>,
    /// Policies that were rejected: the stored version stays in force; without one, a stand-in denies what the policy might
    /// have denied.
    pub refused_policies: Vec<RefusedPolicy>,
    /// Names of removed resources: a workload's uid or a service's `<namespace>/<hostname>`.
    pub remove_addresses: Vec<String>,
    /// Removed policies.
    pub remove_policies: Vec<PolicyKey>,
}

/// What a push changed. Resources that were stored already do not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// Version of the snapshot that has the change.
    pub version: u64,
    /// Workloads added, changed or removed.
    pub workloads: usize,
    /// Services added, changed or removed.
    pub services: usize,
    /// Policies added, changed or removed.
    pub policies: usize,
    /// Whether a workload of this node was among them.
    pub own_node: bool,
}

impl Applied {
    /// Whether anything changed.
    #[must_use]
    pub fn is_change(&self) -> bool {
        self.workloads + self.services + self.policies > 0
    }
}

impl Snapshot {
    /// Applies a push to this copy.
    pub(crate) fn apply(&mut self, batch: Batch) -> Applied {
        let Batch {
            upsert_workloads,
            upsert_services,
            upsert_policies,
            refused_policies,
            remove_addresses,
            remove_policies,
        } = batch;
        let mut applied = Applied::default();
        for workload in upsert_workloads {
            self.upsert_workload(workload, &mut applied);
        }
        for service in upsert_services {
            self.upsert_service(service, &mut applied);
        }
        for (key, policy) in upsert_policies {
            applied.policies += usize::from(self.policies.accept(key, policy));
        }
        let root = Some(&self.options.root_namespace).filter(|root| !root.is_empty());
        for refused in &refused_policies {
            applied.policies += usize::from(self.policies.refuse(refused, root));
        }
        for name in remove_addresses {
            self.remove_address(&name, &mut applied);
        }
        for key in remove_policies {
            applied.policies += usize::from(self.policies.remove(&key));
        }
        if applied.is_change() {
            self.version += 1;
        }
        applied.version = self.version;
        applied
    }

    fn upsert_workload(&mut self, workload: Workload, applied: &mut Applied) {
        let old = self.workloads.get(workload.uid.as_str()).cloned();
        if old.as_deref() == Some(&workload) {
            return;
        }
        self.count_change(&workload, applied);
        if let Some(old) = old {
            applied.own_node |= self.options.is_on_own_node(&old);
            self.workloads.remove(&old);
            self.services.remove_endpoint(&old, Some(&workload));
        }
        let workload = Arc::new(workload);
        self.workloads.insert(&workload, &self.options);
        self.services.add_endpoint(&workload);
    }

    fn count_change(&self, workload: &Workload, applied: &mut Applied) {
        applied.workloads += 1;
        applied.own_node |= self.options.is_on_own_node(workload);
    }

    fn upsert_service(&mut self, service: Service, applied: &mut Applied) {
        let old = self.services.get(&service.key()).cloned();
        if old.as_deref() == Some(&service) {
            return;
        }
        applied.services += 1;
        let service = Arc::new(service);
        match old {
            Some(old) => self.services.replace(&old, &service),
            None => self.services.insert(&service),
        }
    }

    /// A workload of this uid wins; otherwise the name must be exactly the `<namespace>/<hostname>` of a service. It is not
    /// validated: whatever could be added can be removed.
    fn remove_address(&mut self, name: &str, applied: &mut Applied) {
        if let Some(workload) = self.workloads.get(name).cloned() {
            self.count_change(&workload, applied);
            self.workloads.remove(&workload);
            self.services.remove_endpoint(&workload, None);
            return;
        }
        let key = name.split_once('/').map(|(namespace, hostname)| NamespacedHostname {
            namespace: namespace.into(),
            hostname: hostname.into(),
        });
        if let Some(service) = key.and_then(|key| self.services.get(&key).cloned()) {
            applied.services += 1;
            self.services.remove(&service);
        }
    }
}

#[cfg(test)]
mod tests;
