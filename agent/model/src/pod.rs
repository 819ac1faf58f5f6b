//! Which pod: the reference to a Kubernetes Pod object that the node role, the ZDS client, the data plane and the DNS
//! proxy hand to each other. It says nothing about the pod's addresses, labels or state.

use std::fmt;

use crate::name::{Namespace, PodUid, ServiceAccount, Text};

/// A Kubernetes Pod object: `metadata.uid`, `metadata.namespace`, `metadata.name` and `spec.serviceAccountName`, as the
/// node role read them from the API server and as ZDS carries them (`WorkloadInfo`).
///
/// The UID tells two pods of one name apart (a StatefulSet's replacement); the workload API does not carry it, so a
/// pod's [`Workload`](crate::Workload) is found by the other three. It displays as `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodRef {
    /// `metadata.uid`.
    pub uid: PodUid,
    /// `metadata.namespace`.
    pub namespace: Namespace,
    /// `metadata.name`.
    pub name: Text,
    /// `spec.serviceAccountName`; with the namespace, the workload half of the pod's SPIFFE identity.
    pub service_account: ServiceAccount,
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_displays_as_namespace_and_name() {
        let pod = PodRef {
            uid: "u".into(),
            namespace: "sample".into(),
            name: "web-1".into(),
            service_account: "web".into(),
        };
        assert_eq!(pod.to_string(), "sample/web-1");
    }
}
