//! The addresses at which a Gateway is reached: those that it asks for, else those that its Service was given, else
//! those of the nodes on whose network its pods are. A cluster-internal address is not reported: other networks would
//! take it for the gateway's.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::objects::{Gateway, ObjectName};
use crate::store::Objects;

/// The addresses of a Gateway.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// In a fixed order, so that replicas agree.
    found: BTreeSet<Address>,
    /// Why there is none.
    pub(crate) missing: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Address {
    Ip(IpAddr),
    Hostname(String),
}

impl Addresses {
    /// As in `status.addresses`. The type is always given: istiods skip addresses without.
    pub(crate) fn json(&self) -> Value {
        let one = |address: &Address| match address {
            Address::Ip(ip) => json!({"type": "IPAddress", "value": ip}),
            Address::Hostname(name) => json!({"type": "Hostname", "value": name}),
        };
        self.found.iter().map(one).collect()
    }
}

impl Address {
    fn parse(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Hostname(text.to_owned()), Self::Ip)
    }

    /// The Service of the cluster that it names: so says a Gateway through which Service it is reached.
    fn service(&self) -> Option<&str> {
        match self {
            Self::Hostname(name) if !name.contains('.') => Some(name),
            Self::Hostname(name) if name.contains(".svc") => name.split('.').next(),
            _ => None,
        }
    }
}

/// Finds the addresses of a Gateway.
pub(super) fn of(objects: &Objects, name: &ObjectName, gateway: &Gateway) -> Addresses {
    let asked = gateway.spec.addresses.iter().filter(|one| !one.value.is_empty());
    let asked: Vec<_> = asked.map(|one| Address::parse(&one.value)).collect();
    let named: Vec<&str> = asked.iter().filter_map(Address::service).collect();
    let found: BTreeSet<_> = asked.iter().filter(|one| one.service().is_none()).cloned().collect();
    if !found.is_empty() {
        return Addresses { found, missing: None };
    }
    let mut services = 0;
    let mut found = BTreeSet::new();
    for service in objects.services_of(name, &named) {
        services += 1;
        let ingress = service.ingress.iter().filter_map(|one| one.ip.as_ref().or(one.hostname.as_ref()));
        found.extend(ingress.chain(&service.external_ips).map(|text| Address::parse(text)));
    }
    if found.is_empty() {
        let pods = objects.pods_of(name).filter(|pod| pod.host_network && pod.ready);
        found.extend(pods.flat_map(|pod| &pod.host_ips).map(|text| Address::parse(text)));
    }
    let label = crate::GATEWAY_NAME;
    let missing = found.is_empty().then(|| match services {
        0 => format!(
            "no Service has the label {label}: {}, and no ready pod with it is on a host's network",
            name.name
        ),
        _ => "the Service has no external address yet: it needs type LoadBalancer and a load balancer"
            .to_owned(),
    });
    Addresses { found, missing }
}
