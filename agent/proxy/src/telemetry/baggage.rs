//! Conversion between workloads and the baggage header, by which peers of other networks label each other in telemetry.
//! Baggage is an unauthenticated claim: nothing but labels may be derived from it, and only such as Kubernetes could have
//! given. The namespace is not among them: a certificate proves it.

use isthmus_hbone::baggage::{Baggage, Kind};
use isthmus_model::workload::WorkloadType;
use isthmus_model::{SpiffeId, Text, Workload};

use crate::telemetry::{EndpointInfo, Party};

/// The baggage that describes a workload to its peers.
pub(crate) fn for_workload(workload: &Workload) -> String {
    let kind = match workload.workload_type {
        WorkloadType::Deployment => Kind::Deployment,
        WorkloadType::CronJob => Kind::CronJob,
        WorkloadType::Pod => Kind::Pod,
        WorkloadType::Job => Kind::Job,
    };
    Baggage {
        cluster: workload.cluster_id.as_str(),
        namespace: workload.namespace.as_str(),
        workload: Some((kind, workload.workload_name.as_str())),
        service: workload.canonical_name.as_str(),
        version: workload.canonical_revision.as_str(),
        region: workload.locality.region.as_str(),
        zone: workload.locality.zone.as_str(),
    }
    .to_string()
}

/// Longest name of an object, such as a controller or a cluster (RFC 1123 subdomain).
const MAX_NAME: usize = 253;
/// Longest value of a label, which canonical names, revisions, regions and zones are.
const MAX_LABEL: usize = 63;

/// A peer that is not in the local state, as its baggage describes it, and what its certificate proves.
pub(crate) fn from_baggage(header: &str, proven: Option<&SpiffeId>) -> EndpointInfo {
    let claimed = Baggage::parse(header);
    let name: Text = within(claimed.workload.map(|(_, name)| name).unwrap_or_default(), MAX_NAME).into();
    let party = Party {
        workload: name.clone(),
        canonical_service: within(claimed.service, MAX_LABEL).into(),
        canonical_revision: within(claimed.version, MAX_LABEL).into(),
        namespace: proven.map(|id| id.namespace.clone()).unwrap_or_default(),
        principal: proven.cloned(),
        app: name,
        cluster: within(claimed.cluster, MAX_NAME).into(),
        region: within(claimed.region, MAX_LABEL).into(),
        zone: within(claimed.zone, MAX_LABEL).into(),
        known: true,
    };
    EndpointInfo { party, pod: Text::default() }
}

/// The value, or unknown if no object of Kubernetes could have it.
fn within(value: &str, longest: usize) -> &str {
    if value.len() <= longest { value } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn baggage_of_a_workload_parses_to_its_labels() {
        let workload = Workload {
            workload_name: "sleep-v1".into(),
            workload_type: WorkloadType::Job,
            canonical_name: "sleep".into(),
            canonical_revision: "v1".into(),
            namespace: "sample".into(),
            cluster_id: "east".into(),
            ..Workload::default()
        };
        let header = for_workload(&workload);
        assert_eq!(
            header,
            "k8s.cluster.name=east,k8s.namespace.name=sample,k8s.job.name=sleep-v1,service.name=sleep,service.version=v1"
        );
        let identity = workload.identity();
        let parsed = from_baggage(&header, Some(&identity)).party;
        let direct = Party::of(&workload).with_principal(Some(identity));
        // From baggage, `app` is the controller's name, as in ztunnel.
        assert_eq!(parsed, Party { app: "sleep-v1".into(), ..direct });
    }
    #[test]
    fn claims_are_as_long_as_kubernetes_allows_and_never_a_namespace() {
        let id: SpiffeId = "spiffe://td/ns/attacker/sa/a".parse().unwrap();
        let header = |length: usize| {
            let text = "x".repeat(length);
            format!(
                "k8s.namespace.name=kube-system,k8s.pod.name={text},service.name={text},k8s.cluster.name={text}"
            )
        };
        for (length, name, label) in [(63, 63, 63), (64, 64, 0), (253, 253, 0), (254, 0, 0), (60_000, 0, 0)] {
            let party = from_baggage(&header(length), Some(&id)).party;
            assert_eq!(party.namespace.as_str(), "attacker");
            let lengths = (party.workload.as_str().len(), party.canonical_service.as_str().len());
            assert_eq!((lengths, party.cluster.as_str().len()), ((name, label), name), "{length}");
        }
        assert_eq!(from_baggage(&header(1), None).party.namespace.as_str(), "");
    }
}
