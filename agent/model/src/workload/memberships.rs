//! The services of a workload, shared by all workloads that have the same.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, LazyLock};

use crate::name::NamespacedHostname;

/// Ports of a service as one workload serves them: service port → target port (0: not known, use the service's).
pub type PortMap = BTreeMap<u16, u16>;

/// The services that a workload belongs to, each with its ports there. Clones share it, and so can equal ones of
/// different workloads: those of one deployment all have the same.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Memberships(Arc<BTreeMap<NamespacedHostname, PortMap>>);

// === impl Memberships ===

impl Memberships {
    /// Adds a service, or replaces its ports.
    pub fn insert(&mut self, service: NamespacedHostname, ports: PortMap) {
        Arc::make_mut(&mut self.0).insert(service, ports);
    }

    /// Whether this is the only clone.
    pub(crate) fn is_unshared(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl Default for Memberships {
    /// Shared by all workloads without services.
    fn default() -> Self {
        static NONE: LazyLock<Memberships> = LazyLock::new(|| Memberships(Arc::default()));
        NONE.clone()
    }
}

impl Deref for Memberships {
    type Target = BTreeMap<NamespacedHostname, PortMap>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl From<BTreeMap<NamespacedHostname, PortMap>> for Memberships {
    fn from(services: BTreeMap<NamespacedHostname, PortMap>) -> Self {
        if services.is_empty() { Self::default() } else { Self(Arc::new(services)) }
    }
}

impl FromIterator<(NamespacedHostname, PortMap)> for Memberships {
    fn from_iter<I: IntoIterator<Item = (NamespacedHostname, PortMap)>>(services: I) -> Self {
        services.into_iter().collect::<BTreeMap<_, _>>().into()
    }
}
