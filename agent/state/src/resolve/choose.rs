//! Choosing a workload with the address and port to reach it at: of a service, or of whatever a reference to a waypoint
//! or gateway means.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use isthmus_model::service::LbMode;
use isthmus_model::{GatewayAddress, GatewayDestination, Service, SpiffeId, Workload};

use super::reference::{Referent, referent};
use crate::balance::{self, Ask, NoPick, Origin};
use crate::hints::{Candidate, Hints, Role};
use crate::route::{DenyReason, Destination, Pick};
use crate::snapshot::Snapshot;
use crate::target::{PortRule, Wanted, address_of};

/// A workload that was chosen, with the address and port to reach it at.
pub(crate) struct Chosen<'s> {
    pub(crate) workload: &'s Arc<Workload>,
    /// The service it was chosen for.
    pub(crate) service: Option<&'s Arc<Service>>,
    /// `None` for a workload that stands for others on another network, or one whose name was not looked up.
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: u16,
    pub(crate) pick: Pick,
}

/// On whose behalf is chosen, and by what.
pub(crate) struct Chooser<'s, 'r> {
    pub(crate) snapshot: &'s Snapshot,
    pub(crate) source: &'r Workload,
    pub(crate) hints: &'r dyn Hints,
    pub(crate) rng: &'r mut fastrand::Rng,
}

// === impl Chosen ===

impl Chosen<'_> {
    pub(crate) fn socket(&self) -> Result<SocketAddr, DenyReason> {
        match self.address {
            Some(address) => Ok(SocketAddr::new(address, self.port)),
            None if !self.workload.addresses.is_empty() || self.workload.hostname.is_empty() => {
                Err(DenyReason::NoAddress(self.workload.uid.clone()))
            }
            None => Err(DenyReason::HostnameOnly {
                workload: self.workload.uid.clone(),
                hostname: self.workload.hostname.clone(),
            }),
        }
    }

    /// Identities of which this peer must prove one: the service's, and the workload's own.
    pub(crate) fn identities(&self) -> Vec<SpiffeId> {
        let mut identities =
            self.service.map(|service| service.subject_alt_names.clone()).unwrap_or_default();
        let own = self.workload.identity();
        if !identities.contains(&own) {
            identities.push(own);
        }
        identities
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
        wanted: &Wanted<'_>,
        original: IpAddr,
        role: Role,
    ) -> Result<Chosen<'s>, NoPick> {
        let ask = Ask { origin: Origin::Client(self.source), wanted };
        let avoid = |workload: &Workload| {
            let service = Some(&wanted.key);
            self.hints.avoids(&Candidate { role, service, port: wanted.port, workload })
        };
        let picked = balance::choose(self.snapshot, &ask, avoid, self.rng)?;
        let workload = picked.workload;
        let port = wanted.port_of(workload).ok_or(NoPick::Nobody)?;
        let pick = Pick {
            role,
            service: Some(wanted.key.clone()),
            port: wanted.port,
            workload: Arc::clone(workload),
            of: picked.of,
        };
        let address = self.address(workload, address_of(workload, service.ip_families, original));
        Ok(Chosen { workload, service: Some(service), address, port, pick })
    }

    /// The only workload that is meant.
    pub(crate) fn only(
        &self,
        workload: &'s Arc<Workload>,
        address: Option<IpAddr>,
        port: u16,
        role: Role,
    ) -> Result<Chosen<'s>, NoPick> {
        if self.hints.avoids(&Candidate { role, service: None, port, workload }) {
            return Err(NoPick::Avoided);
        }
        let pick = Pick { role, service: None, port, workload: Arc::clone(workload), of: 1 };
        Ok(Chosen { workload, service: None, address: self.address(workload, address), port, pick })
    }

    /// Chooses the workload behind a reference. An address decides the family by itself; a name leaves it to the
    /// original destination.
    pub(crate) fn reference(
        &mut self,
        reference: &GatewayAddress,
        role: Role,
        original: IpAddr,
    ) -> Result<Chosen<'s>, NoPick> {
        let original = match &reference.destination {
            GatewayDestination::Address(address) => address.address,
            GatewayDestination::Hostname(_) => original,
        };
        let port = reference.hbone_mtls_port;
        match referent(self.snapshot, &reference.destination) {
            Some(Referent::Service(service)) if !is_passthrough(service) => {
                let rule = if role == Role::Waypoint { PortRule::Waypoint } else { PortRule::Standard };
                self.endpoint(service, &Wanted::new(service, port, rule), original, role)
            }
            Some(Referent::Workload(workload)) => {
                self.only(workload, address_of(workload, None, original), port, role)
            }
            Some(Referent::Service(_)) | None => Err(NoPick::Nobody),
        }
    }

    /// The address of a workload that has none is what its name was found to mean.
    fn address(&self, workload: &Workload, own: Option<IpAddr>) -> Option<IpAddr> {
        let named = workload.addresses.is_empty() && !workload.hostname.is_empty();
        own.or_else(|| self.hints.address_of(&workload.hostname).filter(|_| named))
    }
}

pub(crate) fn is_passthrough(service: &Service) -> bool {
    service.load_balancer.as_ref().is_some_and(|balancer| balancer.mode == LbMode::Passthrough)
}
