//! Conversion between workloads and the baggage header, by which peers of other networks label each other in telemetry.
//! Baggage is an unauthenticated claim: nothing but labels may be derived from it.

use isthmus_hbone::baggage::{Baggage, Kind};
use isthmus_model::workload::WorkloadType;
use isthmus_model::{Text, Workload};

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

/// A peer that is not in the local state, as its baggage describes it.
pub(crate) fn from_baggage(header: &str) -> EndpointInfo {
    let claimed = Baggage::parse(header);
    let name: Text = claimed.workload.map(|(_, name)| name).unwrap_or_default().into();
    let party = Party {
        workload: name.clone(),
        canonical_service: claimed.service.into(),
        canonical_revision: claimed.version.into(),
        namespace: claimed.namespace.into(),
        principal: None,
        app: name,
        cluster: claimed.cluster.into(),
        region: claimed.region.into(),
        zone: claimed.zone.into(),
        known: true,
    };
    EndpointInfo { party, pod: Text::default() }
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
        let parsed = from_baggage(&header).party;
        let direct = Party::of(&workload);
        // From baggage, `app` is the controller's name, as in ztunnel.
        assert_eq!(parsed, Party { app: "sleep-v1".into(), ..direct });
    }
}
