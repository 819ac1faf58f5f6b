//! What a reference to a waypoint or network gateway means: a service or a workload, by name or by address.

use std::sync::Arc;

use isthmus_model::{GatewayAddress, GatewayDestination, Service, Workload, WorkloadUid};

use crate::snapshot::Snapshot;

/// What a reference names. Nothing is hidden from references: it is the control plane that asks.
pub(super) enum Referent<'s> {
    Service(&'s Arc<Service>),
    Workload(&'s Arc<Workload>),
}

/// Whether this workload is what a reference means, or one of its endpoints.
pub(crate) fn is_waypoint(snapshot: &Snapshot, reference: &GatewayAddress, uid: &WorkloadUid) -> bool {
    match referent(snapshot, &reference.destination) {
        Some(Referent::Service(service)) => {
            snapshot.services.endpoints(&service.key()).is_some_and(|set| set.contains(uid))
        }
        Some(Referent::Workload(workload)) => workload.uid == *uid,
        None => false,
    }
}

pub(super) fn referent<'s>(snapshot: &'s Snapshot, destination: &GatewayDestination) -> Option<Referent<'s>> {
    let (service, workload) = match destination {
        GatewayDestination::Hostname(name) => (snapshot.service(name), snapshot.workload_by_hostname(name)),
        GatewayDestination::Address(address) => {
            (snapshot.service_by_vip(address, None), snapshot.workload_by_addr(address))
        }
    };
    service.map(Referent::Service).or_else(|| workload.map(Referent::Workload))
}
