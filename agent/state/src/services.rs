//! The store of services and its indices (by key, virtual address, range, hostname), and the endpoints of each.
//!
//! Endpoints are stored by service key whether or not the service is known, so they may arrive in any order: those of an
//! unknown service are *staged*.

use std::sync::Arc;

use isthmus_model::{Hostname, Namespace, NamespacedHostname, NetworkAddress, Service, Visibility, Workload};

use crate::balance::EndpointSet;
use crate::cidr::CidrIndex;
use crate::index::{Map, Multi};

/// The store and its indices, which always agree.
#[derive(Clone, Debug, Default)]
pub(crate) struct Services {
    by_key: Map<NamespacedHostname, Arc<Service>>,
    by_vip: Multi<NetworkAddress, Arc<Service>>,
    by_range: CidrIndex,
    by_hostname: Multi<Hostname, Arc<Service>>,
    endpoints: Map<NamespacedHostname, EndpointSet>,
}

/// The namespaces that decide which of several services a client means.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NamespaceScope<'a> {
    /// The namespace of the client; `None` sees every service.
    pub(crate) client: Option<&'a Namespace>,
    /// A namespace that wins when neither the client's nor a canonical service does.
    pub(crate) preferred: Option<&'a Namespace>,
}

// === impl NamespaceScope ===

impl NamespaceScope<'_> {
    fn sees(&self, service: &Service) -> bool {
        let hidden = service.visibility == Visibility::Namespace
            && self.client.is_some_and(|namespace| *namespace != service.namespace);
        !hidden
    }

    fn is_own(&self, service: &Service) -> bool {
        self.client == Some(&service.namespace)
    }

    /// The best of the visible services; the first of equals.
    pub(crate) fn best<'s>(
        &self,
        candidates: impl Iterator<Item = &'s Arc<Service>>,
    ) -> Option<&'s Arc<Service>> {
        let rank = |service: &Service| {
            (self.is_own(service), service.canonical, self.preferred == Some(&service.namespace))
        };
        candidates
            .filter(|service| self.sees(service))
            .reduce(|best, next| if rank(next) > rank(best) { next } else { best })
    }
}

// === impl Services ===

impl Services {
    pub(crate) fn get(&self, key: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.by_key.get(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.by_key.values()
    }

    /// By virtual address, whatever the port: the exact address, otherwise a range.
    pub(crate) fn by_vip<'s>(
        &'s self,
        address: &NetworkAddress,
        scope: NamespaceScope<'_>,
    ) -> Option<&'s Arc<Service>> {
        scope.best(self.by_vip.get(address).iter()).or_else(|| self.by_range(address, scope, |_| true))
    }

    /// By exact virtual address and port. Several services may share an address, or have one name in several namespaces,
    /// and divide the ports between them. When none of them has the port, the best of those at the address.
    pub(crate) fn by_vip_and_port<'s>(
        &'s self,
        address: &NetworkAddress,
        port: u16,
        scope: NamespaceScope<'_>,
    ) -> Option<&'s Arc<Service>> {
        let here = self.by_vip.get(address);
        let has_port = |service: &&Arc<Service>| service.ports.contains_key(&port);
        if let Some(service) = scope.best(here.iter().filter(has_port)) {
            return Some(service);
        }
        let best = scope.best(here.iter())?;
        let named = self.by_hostname.get(&best.hostname).iter();
        Some(scope.best(named.filter(has_port)).unwrap_or(best))
    }

    /// By range, among the services that have the port: the longest range of the client's own namespace, then of any.
    pub(crate) fn by_range_and_port<'s>(
        &'s self,
        address: &NetworkAddress,
        port: u16,
        scope: NamespaceScope<'_>,
    ) -> Option<&'s Arc<Service>> {
        self.by_range(address, scope, |service| service.ports.contains_key(&port))
    }

    fn by_range<'s>(
        &'s self,
        address: &NetworkAddress,
        scope: NamespaceScope<'_>,
        counts: impl Fn(&Service) -> bool,
    ) -> Option<&'s Arc<Service>> {
        let rank =
            |(length, service): &(u8, &Arc<Service>)| (scope.is_own(service), *length, service.canonical);
        let around = self.by_range.containing(address);
        let around = around.filter(|(_, service)| scope.sees(service) && counts(service));
        around.reduce(|best, next| if rank(&next) > rank(&best) { next } else { best }).map(|(_, s)| s)
    }

    pub(crate) fn by_hostname(&self, hostname: &str) -> &[Arc<Service>] {
        self.by_hostname.get(hostname)
    }

    pub(crate) fn endpoints(&self, key: &NamespacedHostname) -> Option<&EndpointSet> {
        self.endpoints.get(key)
    }

    pub(crate) fn staged(&self) -> impl Iterator<Item = (&NamespacedHostname, &EndpointSet)> {
        self.endpoints.iter().filter(|(key, _)| !self.by_key.contains_key(*key))
    }

    /// Adds a service that is not stored yet.
    pub(crate) fn insert(&mut self, service: &Arc<Service>) {
        let key = service.key();
        let same = |stored: &Arc<Service>| is(stored, &key);
        for vip in &service.vips {
            self.by_vip.insert(vip, Arc::clone(service), same);
        }
        for range in &service.cidr_vips {
            self.by_range.insert(range, service);
        }
        self.by_hostname.insert(&service.hostname, Arc::clone(service), same);
        self.by_key.insert_mut(key, Arc::clone(service));
    }

    /// Replaces a service. In the indices the new one takes the position of the old one, so that an update does not change
    /// which of several services wins.
    pub(crate) fn replace(&mut self, old: &Arc<Service>, new: &Arc<Service>) {
        let key = new.key();
        let same = |stored: &Arc<Service>| is(stored, &key);
        for vip in old.vips.iter().filter(|vip| !new.vips.contains(vip)) {
            self.by_vip.remove(vip, same);
        }
        for range in &old.cidr_vips {
            self.by_range.remove(range, old);
        }
        self.insert(new);
    }

    /// Removes a stored service; its endpoints stay, staged.
    pub(crate) fn remove(&mut self, service: &Arc<Service>) {
        let key = service.key();
        let same = |stored: &Arc<Service>| is(stored, &key);
        for vip in &service.vips {
            self.by_vip.remove(vip, same);
        }
        for range in &service.cidr_vips {
            self.by_range.remove(range, service);
        }
        self.by_hostname.remove(&service.hostname, same);
        self.by_key.remove_mut(&key);
    }

    /// Adds a workload to the endpoints of its services, or replaces it there.
    pub(crate) fn add_endpoint(&mut self, workload: &Arc<Workload>) {
        for key in workload.services.keys() {
            match self.endpoints.get_mut(key) {
                Some(set) => set.insert(Arc::clone(workload)),
                None => {
                    let mut set = EndpointSet::default();
                    set.insert(Arc::clone(workload));
                    self.endpoints.insert_mut(key.clone(), set);
                }
            }
        }
    }

    /// Removes a workload from the endpoints of those of its services that `keeps` does not name.
    pub(crate) fn remove_endpoint(&mut self, workload: &Workload, keeps: Option<&Workload>) {
        let stays = |key: &&NamespacedHostname| keeps.is_some_and(|next| next.services.contains_key(*key));
        for key in workload.services.keys().filter(|key| !stays(key)) {
            let Some(set) = self.endpoints.get_mut(key) else { continue };
            set.remove(&workload.uid);
            if set.is_empty() {
                self.endpoints.remove_mut(key);
            }
        }
    }
}

fn is(service: &Service, key: &NamespacedHostname) -> bool {
    service.namespace == key.namespace && service.hostname == key.hostname
}
