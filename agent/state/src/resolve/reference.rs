//! What a reference to a waypoint or network gateway means: a service or a workload, by name or by address.

use std::net::IpAddr;
use std::sync::Arc;

use isthmus_model::{GatewayAddress, GatewayDestination, Service, Workload, WorkloadUid};

use super::{Chosen, choose, is_passthrough};
use crate::snapshot::Snapshot;
use crate::target::{PortRule, Wanted, address_of};

/// What a reference names. Nothing is hidden from references: it is the control plane that asks.
enum Referent<'s> {
    Service(&'s Arc<Service>),
    Workload(&'s Arc<Workload>),
}

/// Chooses the workload behind a reference. An address decides the family by itself; a name leaves it to the original
/// destination.
pub(crate) fn resolve_reference<'s>(
    snapshot: &'s Snapshot,
    source: &Workload,
    reference: &GatewayAddress,
    rule: PortRule,
    original: IpAddr,
    rng: &mut fastrand::Rng,
) -> Option<Chosen<'s>> {
    let original = match &reference.destination {
        GatewayDestination::Address(address) => address.address,
        GatewayDestination::Hostname(_) => original,
    };
    match referent(snapshot, &reference.destination)? {
        Referent::Service(service) if is_passthrough(service) => None,
        Referent::Service(service) => {
            let wanted = Wanted::new(service, reference.hbone_mtls_port, rule);
            choose(snapshot, source, service, &wanted, original, rng)
        }
        Referent::Workload(workload) => Some(Chosen {
            workload,
            service: None,
            address: address_of(workload, None, original),
            port: reference.hbone_mtls_port,
        }),
    }
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

fn referent<'s>(snapshot: &'s Snapshot, destination: &GatewayDestination) -> Option<Referent<'s>> {
    let (service, workload) = match destination {
        GatewayDestination::Hostname(name) => (snapshot.service(name), snapshot.workload_by_hostname(name)),
        GatewayDestination::Address(address) => {
            (snapshot.service_by_vip(address, None), snapshot.workload_by_addr(address))
        }
    };
    service.map(Referent::Service).or_else(|| workload.map(Referent::Workload))
}
