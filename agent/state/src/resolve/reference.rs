//! What a reference to a waypoint or network gateway names: a service or a workload, by name or by address. A service
//! wins over a workload of the same name or address.

use std::sync::Arc;

use isthmus_model::{GatewayAddress, GatewayDestination, Service, Workload, WorkloadUid};

use crate::snapshot::Snapshot;

/// What a reference names. Service visibility does not apply: the reference comes from the control plane.
pub(super) enum ReferenceTarget<'s> {
    Service(&'s Arc<Service>),
    Workload(&'s Arc<Workload>),
}

/// Whether a reference names this workload, or a service of which it is an endpoint.
pub(crate) fn is_waypoint(snapshot: &Snapshot, reference: &GatewayAddress, uid: &WorkloadUid) -> bool {
    match reference_target(snapshot, &reference.destination) {
        Some(ReferenceTarget::Service(service)) => {
            snapshot.services.endpoints(&service.key()).is_some_and(|set| set.contains(uid))
        }
        Some(ReferenceTarget::Workload(workload)) => workload.uid == *uid,
        None => false,
    }
}

pub(super) fn reference_target<'s>(
    snapshot: &'s Snapshot,
    destination: &GatewayDestination,
) -> Option<ReferenceTarget<'s>> {
    let (service, workload) = match destination {
        GatewayDestination::Hostname(name) => (snapshot.service(name), snapshot.workload_by_hostname(name)),
        GatewayDestination::Address(address) => {
            (snapshot.service_by_vip(address, None), snapshot.workload_by_addr(address))
        }
    };
    service.map(ReferenceTarget::Service).or_else(|| workload.map(ReferenceTarget::Workload))
}
