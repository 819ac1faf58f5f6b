//! The shape of the file, and its way into the vocabulary. Only shape: what a value means is the model's.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_model::policy::{AccountMatch, StringMatch};
use isthmus_model::service::{HealthPolicy, LbMode, LbScope, NetworkCidr};
use isthmus_model::workload::{ApplicationTunnel, TunnelKind, WorkloadType};
use isthmus_model::{
    Action, GatewayAddress, GatewayDestination, Health, IpFamilies, LoadBalancer, Locality,
    NamespacedHostname, NetworkAddress, NetworkMode, Protocol, Scope, SpiffeId, TrustDomain, Visibility,
};
use serde::Deserialize;

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub(super) workloads: Vec<Workload>,
    #[serde(default)]
    pub(super) services: Vec<Service>,
    #[serde(default)]
    pub(super) policies: Vec<Policy>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Workload {
    workload_ips: Vec<IpAddr>,
    namespace: String,
    services: BTreeMap<ServiceName, BTreeMap<u16, u16>>,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    name: String,
    #[serde(default, with = "ProtocolName")]
    protocol: Protocol,
    #[serde(default, with = "NetworkModeName")]
    network_mode: NetworkMode,
    #[serde(default)]
    network: String,
    #[serde(default)]
    trust_domain: String,
    #[serde(default)]
    service_account: String,
    #[serde(default)]
    waypoint: Option<Gateway>,
    #[serde(default)]
    network_gateway: Option<Gateway>,
    #[serde(default)]
    node: String,
    #[serde(default)]
    workload_name: String,
    #[serde(default, with = "WorkloadTypeName")]
    workload_type: WorkloadType,
    #[serde(default)]
    canonical_name: String,
    #[serde(default)]
    canonical_revision: String,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    native_tunnel: bool,
    #[serde(default)]
    application_tunnel: Option<Tunnel>,
    #[serde(default)]
    authorization_policies: Vec<String>,
    #[serde(default, with = "HealthName")]
    status: Health,
    #[serde(default)]
    cluster_id: String,
    #[serde(default)]
    locality: LocalityNames,
    #[serde(default = "one")]
    capacity: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Service {
    name: String,
    namespace: String,
    hostname: String,
    vips: Vec<Vip>,
    ports: BTreeMap<u16, u16>,
    #[serde(default)]
    cidr_vips: Vec<CidrVip>,
    #[serde(default)]
    subject_alt_names: Vec<Id>,
    #[serde(default)]
    waypoint: Option<Gateway>,
    #[serde(default)]
    weighted_waypoints: Vec<WeightedGateway>,
    #[serde(default)]
    load_balancer: Option<Balancer>,
    #[serde(default)]
    ip_families: Option<Families>,
    #[serde(default)]
    canonical: bool,
    #[serde(default, with = "VisibilityName")]
    visibility: Visibility,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Policy {
    name: String,
    namespace: String,
    #[serde(with = "ScopeName")]
    scope: Scope,
    #[serde(with = "ActionName")]
    action: Action,
    rules: Vec<Vec<Vec<Match>>>,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[derive(Default)]
struct Match {
    namespaces: Vec<Text>,
    not_namespaces: Vec<Text>,
    service_accounts: Vec<Account>,
    not_service_accounts: Vec<Account>,
    principals: Vec<Text>,
    not_principals: Vec<Text>,
    source_ips: Vec<IpNet>,
    not_source_ips: Vec<IpNet>,
    destination_ips: Vec<IpNet>,
    not_destination_ips: Vec<IpNet>,
    destination_ports: Vec<u16>,
    not_destination_ports: Vec<u16>,
}

/// A YAML tag: `!Exact a`, `!Prefix a`, `!Suffix a`, `!Presence []`.
#[derive(Deserialize)]
enum Text {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Presence(#[expect(dead_code, reason = "the empty list says nothing")] Option<[(); 0]>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Account {
    namespace: String,
    service_account: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Gateway {
    destination: Destination,
    hbone_mtls_port: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WeightedGateway {
    destination: Gateway,
    weight: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Tunnel {
    #[serde(with = "TunnelKindName")]
    protocol: TunnelKind,
    #[serde(default)]
    port: Option<u16>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct LocalityNames {
    region: String,
    zone: String,
    subzone: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CidrVip {
    network: String,
    cidr: IpNet,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Balancer {
    routing_preferences: Vec<LbScopeName>,
    #[serde(with = "LbModeName")]
    mode: LbMode,
    #[serde(default = "only_healthy", with = "HealthPolicyName")]
    health_policy: HealthPolicy,
}

/// `<network>/<ip>`.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Vip(NetworkAddress);

/// `<network>/<ip>` or `<namespace>/<hostname>`.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Destination(GatewayDestination);

/// `<namespace>/<hostname>`.
#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(try_from = "String")]
struct ServiceName(NamespacedHostname);

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Id(SpiffeId);

/// Declares how the variants of a model enum are spelled in the file.
macro_rules! spelled {
    ($($name:ident of $model:ty { $($variant:ident = $text:literal),+ $(,)? })+) => {$(
        #[derive(Deserialize)]
        enum $name { $(#[serde(rename = $text)] $variant),+ }

        impl From<$name> for $model {
            fn from(name: $name) -> Self {
                match name { $($name::$variant => Self::$variant),+ }
            }
        }

        impl $name {
            #[allow(dead_code, reason = "some enums are only read inside of others")]
            fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<$model, D::Error> {
                <Self as Deserialize>::deserialize(from).map(Into::into)
            }
        }
    )+};
}

spelled! {
    ProtocolName of Protocol { Tcp = "TCP", Hbone = "HBONE" }
    NetworkModeName of NetworkMode { Standard = "Standard", HostNetwork = "HostNetwork" }
    WorkloadTypeName of WorkloadType { Deployment = "deployment", CronJob = "cronjob", Pod = "pod", Job = "job" }
    HealthName of Health { Healthy = "Healthy", Unhealthy = "Unhealthy" }
    TunnelKindName of TunnelKind { None = "NONE", Proxy = "PROXY" }
    ScopeName of Scope { Global = "Global", Namespace = "Namespace", WorkloadSelector = "WorkloadSelector" }
    ActionName of Action { Allow = "Allow", Deny = "Deny" }
    VisibilityName of Visibility { Public = "Public", Namespace = "Namespace" }
    Families of IpFamilies { Dual = "Dual", Ipv4 = "IPv4", Ipv6 = "IPv6" }
    LbModeName of LbMode {
        Standard = "Standard", Strict = "Strict", Failover = "Failover", Passthrough = "Passthrough",
    }
    HealthPolicyName of HealthPolicy { OnlyHealthy = "OnlyHealthy", AllowAll = "AllowAll" }
    LbScopeName of LbScope {
        Region = "Region", Zone = "Zone", Subzone = "Subzone", Node = "Node", Cluster = "Cluster",
        Network = "Network",
    }
}

fn one() -> u32 {
    1
}

fn only_healthy() -> HealthPolicy {
    HealthPolicy::OnlyHealthy
}

fn or(text: String, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text }
}

// === impl Workload ===

impl Workload {
    /// `None` when there is neither a uid nor a name to make one of. Defaults are those of the wire.
    pub(super) fn into_model(self) -> Option<isthmus_model::Workload> {
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
            addresses: self.workload_ips.iter().map(IpAddr::to_canonical).collect(),
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
    pub(super) fn into_model(self) -> isthmus_model::Service {
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
    pub(super) fn into_model(self) -> isthmus_model::Policy {
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
    Some(NetworkAddress { network: network.into(), address: address.to_canonical() })
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
