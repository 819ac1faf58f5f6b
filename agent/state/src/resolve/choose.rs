//! Choosing a workload with the address and port to reach it at: of a service, or of what a reference to a waypoint or
//! gateway names. It decides nothing about how the connection is carried.

use std::net::IpAddr;
use std::sync::Arc;

use isthmus_model::service::LbMode;
use isthmus_model::{GatewayAddress, GatewayDestination, Service, Workload};

use super::reference::{ReferenceTarget, reference_target};
use crate::avoid::{Avoid, Candidate};
use crate::balance::{self, EndpointQuery, NoEndpoint, QueryOrigin};
use crate::route::{AcceptedIdentities, Destination, Pick, Role};
use crate::snapshot::Snapshot;
use crate::target::{PortRule, ServicePort, address_of};

/// A workload that was chosen, with the address and port to reach it at.
pub(crate) struct Chosen<'s> {
    pub(crate) workload: &'s Arc<Workload>,
    /// The service it was chosen for.
    pub(crate) service: Option<&'s Arc<Service>>,
    /// `None` for a workload that stands for the endpoints of another network, that is known by its hostname only, or
    /// that has no address of an allowed family.
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: u16,
    pub(crate) pick: Pick,
}

/// Chooses on behalf of a source workload.
pub(crate) struct Chooser<'s, 'r> {
    pub(crate) snapshot: &'s Snapshot,
    pub(crate) source: &'r Workload,
    pub(crate) avoid: Avoid<'r>,
    pub(crate) rng: &'r mut fastrand::Rng,
}

// === impl Chosen ===

impl Chosen<'_> {
    /// Whether its hostname must be looked up. A hostname never replaces an address: a workload whose addresses are all
    /// of the wrong family is unreachable.
    pub(crate) fn is_known_by_hostname(&self) -> bool {
        self.workload.addresses.is_empty() && !self.workload.hostname.is_empty()
    }

    /// Identities of which this peer must prove one: the service's, and the workload's own.
    pub(crate) fn identities(&self) -> AcceptedIdentities {
        AcceptedIdentities::of(self.service.map(|service| &**service), self.workload)
    }

    pub(crate) fn destination(&self) -> Destination {
        Destination { workload: Some(Arc::clone(self.workload)), service: self.service.cloned() }
    }
}

// === impl Chooser ===

impl<'s> Chooser<'s, '_> {
    /// Chooses an endpoint of a service.
    pub(crate) fn endpoint(
        &mut self,
        service: &'s Arc<Service>,
        service_port: &ServicePort<'_>,
        original: IpAddr,
        role: Role,
    ) -> Result<Chosen<'s>, NoEndpoint> {
        let set = self.snapshot.services.endpoints(&service_port.key).ok_or(NoEndpoint::NoneQualify)?;
        let query = EndpointQuery { origin: QueryOrigin::Client(self.source), service_port };
        let (avoid, network) = (&self.avoid, &self.source.network);
        let avoids = |workload: &Workload| {
            let (service, port) = (Some(&service_port.key), service_port.port);
            avoid.contains(&Candidate { role, service, port, workload }, network)
        };
        let picked = balance::choose(set, &query, avoids, self.rng)?;
        let workload = picked.workload;
        let port = service_port.port_of(workload).ok_or(NoEndpoint::NoneQualify)?;
        let pick = Pick {
            role,
            service: Some(service_port.key.clone()),
            port: service_port.port,
            workload: Arc::clone(workload),
            of: picked.of,
            host: None,
        };
        let address = address_of(workload, service.ip_families, original);
        Ok(Chosen { workload, service: Some(service), address, port, pick })
    }

    /// The only workload that is meant.
    pub(crate) fn only(
        &self,
        workload: &'s Arc<Workload>,
        address: Option<IpAddr>,
        port: u16,
        role: Role,
    ) -> Result<Chosen<'s>, NoEndpoint> {
        let candidate = Candidate { role, service: None, port, workload };
        if self.avoid.contains(&candidate, &self.source.network) {
            return Err(NoEndpoint::AllAvoided);
        }
        let pick = Pick { role, service: None, port, workload: Arc::clone(workload), of: 1, host: None };
        Ok(Chosen { workload, service: None, address, port, pick })
    }

    /// Chooses the workload behind a reference. A reference by address decides the family by itself; a name leaves it to
    /// the original destination.
    pub(crate) fn reference(
        &mut self,
        reference: &GatewayAddress,
        role: Role,
        original: IpAddr,
    ) -> Result<Chosen<'s>, NoEndpoint> {
        let original = match &reference.destination {
            GatewayDestination::Address(address) => address.address,
            GatewayDestination::Hostname(_) => original,
        };
        let port = reference.hbone_mtls_port;
        match reference_target(self.snapshot, &reference.destination) {
            Some(ReferenceTarget::Service(service)) if !is_passthrough(service) => {
                let rule = if role == Role::Waypoint { PortRule::Waypoint } else { PortRule::Standard };
                self.endpoint(service, &ServicePort::new(service, port, rule), original, role)
            }
            Some(ReferenceTarget::Workload(workload)) => {
                self.only(workload, address_of(workload, None, original), port, role)
            }
            Some(ReferenceTarget::Service(_)) | None => Err(NoEndpoint::NoneQualify),
        }
    }
}

pub(crate) fn is_passthrough(service: &Service) -> bool {
    service.load_balancer.as_ref().is_some_and(|balancer| balancer.mode == LbMode::Passthrough)
}
