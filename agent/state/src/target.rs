//! Which address and port of a chosen workload a connection goes to: pure functions of the workload, the service and the
//! original destination.

use std::net::IpAddr;

use isthmus_model::{IpFamilies, NamespacedHostname, Service, Workload};

/// What a service port must satisfy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PortRule {
    /// The service must declare it.
    Standard,
    /// The service must declare it, or the workload has an application tunnel (a sandwiched waypoint).
    Waypoint,
}

/// A port of a service, with the key that choosing an endpoint needs again and again.
#[derive(Clone, Debug)]
pub(crate) struct ServicePort<'a> {
    pub(crate) service: &'a Service,
    pub(crate) key: NamespacedHostname,
    pub(crate) port: u16,
    pub(crate) rule: PortRule,
}

// === impl ServicePort ===

impl<'a> ServicePort<'a> {
    pub(crate) fn new(service: &'a Service, port: u16, rule: PortRule) -> Self {
        Self { service, key: service.key(), port, rule }
    }

    /// The workload's port: the endpoint's target port, then the service's, then the port itself if the workload's
    /// application tunnel listens there.
    pub(crate) fn port_of(&self, workload: &Workload) -> Option<u16> {
        let declared = self.service.ports.get(&self.port);
        let tunnel = workload.application_tunnel;
        if declared.is_none() && (self.rule == PortRule::Standard || tunnel.is_none()) {
            return None;
        }
        let endpoint = workload.services.get(&self.key).and_then(|ports| ports.get(&self.port));
        let known = |port: &&u16| **port != 0;
        let tunnelled = || tunnel.and_then(|tunnel| tunnel.port).map(|_| self.port);
        endpoint.filter(known).or_else(|| declared.filter(known)).copied().or_else(tunnelled)
    }
}

/// The workload's address: the original one if the workload has it, otherwise one of an allowed family, preferably the
/// family of the original one.
pub(crate) fn address_of(
    workload: &Workload,
    families: Option<IpFamilies>,
    original: IpAddr,
) -> Option<IpAddr> {
    if workload.addresses.contains(&original) {
        return Some(original);
    }
    let allowed = |address: &&IpAddr| families.is_none_or(|families| families.accepts(**address));
    let mut fitting = workload.addresses.iter().filter(allowed).copied();
    let first = fitting.next()?;
    let same = |address: &IpAddr| address.is_ipv4() == original.is_ipv4();
    Some(if same(&first) { first } else { fitting.find(same).unwrap_or(first) })
}

/// Whether a client can reach this workload at all: it has an address or a hostname, or its network has a gateway.
pub(crate) fn is_reachable(workload: &Workload, from: &Workload) -> bool {
    !workload.addresses.is_empty()
        || !workload.hostname.is_empty()
        || (workload.network != from.network && workload.network_gateway.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use isthmus_model::workload::{ApplicationTunnel, TunnelKind};

    #[test]
    fn the_port_comes_from_the_endpoint_then_the_service_then_the_tunnel() {
        use PortRule::{Standard, Waypoint};
        let tunnel = |port| Some(ApplicationTunnel { protocol: TunnelKind::Proxy, port });
        // (service port → target), endpoint port map, tunnel, rule, wanted
        let cases = [
            (Some(8080), Some(9090), None, Standard, Some(9090)),
            (Some(8080), Some(0), None, Standard, Some(8080)),
            (Some(8080), None, None, Standard, Some(8080)),
            (Some(0), Some(9090), None, Standard, Some(9090)),
            (Some(0), None, None, Standard, None),
            (Some(0), None, tunnel(Some(15088)), Standard, Some(80)),
            (None, Some(9090), None, Standard, None),
            (None, Some(9090), tunnel(Some(1)), Standard, None),
            (None, None, None, Waypoint, None),
            (None, None, tunnel(Some(1)), Waypoint, Some(80)),
            (None, None, tunnel(None), Waypoint, None),
            (Some(15008), None, None, Waypoint, Some(15008)),
        ];
        for (declared, endpoint, tunnel, rule, want) in cases {
            let mut service = fixture::service("a", "10.96.0.1");
            service.ports = declared.map(|target| (80, target)).into_iter().collect();
            let mut workload = fixture::pod("a-1", "10.0.0.1");
            let ports = endpoint.map(|target| (80, target)).into_iter().collect();
            workload.services.insert(service.key(), ports);
            workload.application_tunnel = tunnel;
            let got = ServicePort::new(&service, 80, rule).port_of(&workload);
            assert_eq!(got, want, "{declared:?} {endpoint:?} {tunnel:?} {rule:?}");
        }
    }

    #[test]
    fn the_address_is_the_one_asked_for_or_one_of_its_family() {
        type Case<'a> = (&'a [&'a str], Option<IpFamilies>, &'a str, Option<&'a str>);
        let cases: [Case<'_>; 8] = [
            (&["10.0.0.1", "10.0.0.2"], None, "10.0.0.2", Some("10.0.0.2")),
            (&["10.0.0.1", "fd00::1"], None, "10.96.0.1", Some("10.0.0.1")),
            (&["10.0.0.1", "fd00::1"], None, "fd96::1", Some("fd00::1")),
            (&["10.0.0.1", "fd00::1"], Some(IpFamilies::Ipv6), "10.96.0.1", Some("fd00::1")),
            (&["10.0.0.1"], Some(IpFamilies::Ipv6), "10.96.0.1", None),
            (&["10.0.0.1"], Some(IpFamilies::Ipv6), "10.0.0.1", Some("10.0.0.1")),
            (&["fd00::1"], Some(IpFamilies::Dual), "10.96.0.1", Some("fd00::1")),
            (&[], None, "10.96.0.1", None),
        ];
        for (addresses, families, original, want) in cases {
            let mut workload = fixture::pod("a", "10.0.0.1");
            workload.addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
            let got = address_of(&workload, families, original.parse().unwrap());
            assert_eq!(got, want.map(|text| text.parse().unwrap()), "{addresses:?} {original}");
        }
    }
}
