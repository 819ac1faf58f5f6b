//! From the shape of the file to the vocabulary. Defaults are those of the wire.

use std::net::IpAddr;

use isthmus_model::policy::{AccountMatch, StringMatch};
use isthmus_model::service::NetworkCidr;
use isthmus_model::workload::ApplicationTunnel;
use isthmus_model::{
    GatewayAddress, GatewayDestination, LoadBalancer, Locality, NamespacedHostname, NetworkAddress,
    TrustDomain,
};

use super::{
    Account, CidrVip, Destination, Gateway, Id, LocalityNames, Match, Policy, Service, ServiceName, Text,
    Tunnel, Vip, WeightedGateway, Workload,
};

fn or(text: String, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text }
}

// === impl Workload ===

impl Workload {
    /// `None` when there is neither a uid nor a name to make one of. Defaults are those of the wire.
    pub(in crate::local) fn into_model(self) -> Option<isthmus_model::Workload> {
        let cluster = or(self.cluster_id, "Kubernetes");
        let uid = match (self.uid, &self.name) {
            (uid, name) if uid.is_empty() && name.is_empty() => return None,
            (uid, name) if uid.is_empty() => format!("{cluster}//Pod/{}/{name}", self.namespace),
            (uid, _) => uid,
        };
        let LocalityNames { region, zone, subzone } = self.locality;
        Some(isthmus_model::Workload {
            uid: uid.into(),
            name: self.name.into(),
            namespace: self.namespace.into(),
            addresses: self.workload_ips,
            hostname: self.hostname.into(),
            network: self.network.into(),
            protocol: self.protocol,
            trust_domain: TrustDomain::from(self.trust_domain.as_str()),
            service_account: or(self.service_account, "default").into(),
            waypoint: self.waypoint.map(Into::into),
            network_gateway: self.network_gateway.map(Into::into),
            node: self.node.into(),
            canonical_name: self.canonical_name.into(),
            canonical_revision: self.canonical_revision.into(),
            workload_type: self.workload_type,
            workload_name: self.workload_name.into(),
            native_tunnel: self.native_tunnel,
            application_tunnel: self
                .application_tunnel
                .map(|Tunnel { protocol, port }| ApplicationTunnel { protocol, port }),
            services: self.services.into_iter().map(|(ServiceName(name), ports)| (name, ports)).collect(),
            authorization_policies: self.authorization_policies.into_iter().map(Into::into).collect(),
            status: self.status,
            cluster_id: cluster.into(),
            locality: Locality { region: region.into(), zone: zone.into(), subzone: subzone.into() },
            network_mode: self.network_mode,
            capacity: self.capacity,
        })
    }
}

// === impl Service ===

impl Service {
    pub(in crate::local) fn into_model(self) -> isthmus_model::Service {
        isthmus_model::Service {
            name: self.name.into(),
            namespace: self.namespace.into(),
            hostname: self.hostname.into(),
            vips: self.vips.into_iter().map(|Vip(address)| address).collect(),
            cidr_vips: self
                .cidr_vips
                .into_iter()
                .map(|CidrVip { network, cidr }| NetworkCidr { network: network.into(), cidr })
                .collect(),
            ports: self.ports,
            subject_alt_names: self.subject_alt_names.into_iter().map(|Id(id)| id).collect(),
            waypoint: self.waypoint.map(Into::into),
            weighted_waypoints: self
                .weighted_waypoints
                .into_iter()
                .map(|WeightedGateway { destination, weight }| (destination.into(), weight))
                .collect(),
            load_balancer: self.load_balancer.map(|balancer| LoadBalancer {
                routing_preferences: balancer.routing_preferences.into_iter().map(Into::into).collect(),
                mode: balancer.mode,
                health_policy: balancer.health_policy,
            }),
            ip_families: self.ip_families.map(Into::into),
            canonical: self.canonical,
            visibility: self.visibility,
        }
    }
}

// === impl Policy ===

impl Policy {
    pub(in crate::local) fn into_model(self) -> isthmus_model::Policy {
        let clause = |matches: Vec<Match>| matches.into_iter().map(Into::into).collect();
        let rule = |clauses: Vec<Vec<Match>>| clauses.into_iter().map(clause).collect();
        isthmus_model::Policy {
            name: self.name.into(),
            namespace: self.namespace.into(),
            scope: self.scope,
            action: self.action,
            rules: self.rules.into_iter().map(rule).collect(),
            dry_run: self.dry_run,
        }
    }
}

impl From<Match> for isthmus_model::policy::Match {
    fn from(from: Match) -> Self {
        fn all<T, U: From<T>>(items: Vec<T>) -> Vec<U> {
            items.into_iter().map(Into::into).collect()
        }
        Self {
            namespaces: all(from.namespaces),
            not_namespaces: all(from.not_namespaces),
            service_accounts: all(from.service_accounts),
            not_service_accounts: all(from.not_service_accounts),
            principals: all(from.principals),
            not_principals: all(from.not_principals),
            source_ips: from.source_ips,
            not_source_ips: from.not_source_ips,
            destination_ips: from.destination_ips,
            not_destination_ips: from.not_destination_ips,
            destination_ports: from.destination_ports,
            not_destination_ports: from.not_destination_ports,
        }
    }
}

impl From<Text> for StringMatch {
    fn from(from: Text) -> Self {
        match from {
            Text::Exact(text) => Self::Exact(text.into()),
            Text::Prefix(text) => Self::Prefix(text.into()),
            Text::Suffix(text) => Self::Suffix(text.into()),
            Text::Presence(_) => Self::Presence,
        }
    }
}

impl From<Account> for AccountMatch {
    fn from(Account { namespace, service_account }: Account) -> Self {
        Self { namespace: namespace.into(), service_account: service_account.into() }
    }
}

impl From<Gateway> for GatewayAddress {
    fn from(Gateway { destination: Destination(destination), hbone_mtls_port }: Gateway) -> Self {
        Self { destination, hbone_mtls_port }
    }
}

fn network_address(text: &str) -> Option<NetworkAddress> {
    let (network, address) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    Some(NetworkAddress { network: network.into(), address })
}

impl TryFrom<String> for Vip {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        network_address(&text).map(Self).ok_or_else(|| format!("{text:?} is not <network>/<ip>"))
    }
}

impl TryFrom<String> for Destination {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let address = network_address(&text).map(GatewayDestination::Address);
        let name = || NamespacedHostname::parse(&text).map(GatewayDestination::Hostname);
        let bad = || format!("{text:?} is neither <network>/<ip> nor <namespace>/<hostname>");
        address.or_else(name).map(Self).ok_or_else(bad)
    }
}

impl TryFrom<String> for ServiceName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        NamespacedHostname::parse(&text)
            .map(Self)
            .ok_or_else(|| format!("{text:?} is not <namespace>/<hostname>"))
    }
}

impl TryFrom<String> for Id {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self).map_err(|error: isthmus_model::identity::NotAnIdentity| error.to_string())
    }
}
