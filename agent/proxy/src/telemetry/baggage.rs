//! What workloads call themselves on the wire, and back: baggage as metric labels. Pure; labels, never proof.

use isthmus_hbone::baggage::{Baggage, Kind};
use isthmus_model::workload::WorkloadType;
use isthmus_model::{Text, Workload};

use crate::telemetry::End;
use crate::telemetry::Party;

/// What a workload says of itself.
pub(crate) fn baggage(workload: &Workload) -> String {
    let kind = match workload.workload_type {
        WorkloadType::Deployment => Kind::Deployment,
        WorkloadType::CronJob => Kind::CronJob,
        WorkloadType::Pod => Kind::Pod,
        WorkloadType::Job => Kind::Job,
    };
    Baggage {
        cluster: workload.cluster_id.to_string(),
        namespace: workload.namespace.to_string(),
        workload: Some((kind, workload.workload_name.to_string())),
        service: workload.canonical_name.to_string(),
        version: workload.canonical_revision.to_string(),
        region: workload.locality.region.to_string(),
        zone: workload.locality.zone.to_string(),
    }
    .to_string()
}

/// What the far end says of a workload we cannot look up.
pub(crate) fn from_baggage(header: &str) -> End {
    let said = Baggage::parse(header);
    let name: Text = said.workload.map(|(_, name)| name).unwrap_or_default().into();
    let party = Party {
        workload: name.clone(),
        canonical_service: said.service.into(),
        canonical_revision: said.version.into(),
        namespace: said.namespace.into(),
        principal: None,
        app: name,
        cluster: said.cluster.into(),
        region: said.region.into(),
        zone: said.zone.into(),
        known: true,
    };
    End { party, pod: Text::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_recognised_by_what_it_said() {
        let workload = Workload {
            workload_name: "sleep-v1".into(),
            workload_type: WorkloadType::Job,
            canonical_name: "sleep".into(),
            canonical_revision: "v1".into(),
            namespace: "sample".into(),
            cluster_id: "east".into(),
            ..Workload::default()
        };
        let header = baggage(&workload);
        assert_eq!(
            header,
            "k8s.cluster.name=east,k8s.namespace.name=sample,k8s.job.name=sleep-v1,service.name=sleep,service.version=v1"
        );
        let read = from_baggage(&header).party;
        let direct = Party::of(&workload);
        // From baggage the app is the controller's name, as dashboards have it.
        assert_eq!(read, Party { app: "sleep-v1".into(), ..direct });
    }
}
